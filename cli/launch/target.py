"""What each rank runs: the argv of one rank, for a YAML file, a script or a module."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.launch.emulation import Emulation
from cli.launch.engines import script_engine
from cli.launch.entrypoint import Module, Script
from cli.runs.folder import new_run_folder, newest_run
from hvd_train.config import targets
from hvd_train.errors import UserError
from hvd_train.rank import internal
from hvd_train.rank.script_options import ScriptOptions
from hvd_train.rank.submitted import RECORD, awaits_start
from hvd_train.state.checkpoint_folder import MANIFEST, run_of

if TYPE_CHECKING:
    from hvd_train.config.schema import Config

_DEFAULTS = ScriptOptions()
RANK = (sys.executable, "-m", "mpi4py", internal.PROGRAM, "hvd_train")
_FOUND_BY_RANKS = {"hvd_train", "horovod"}
"""Packages that `hvd_train.rank` puts on the path of every rank."""


@dataclass(frozen=True)
class Target:
    """What every rank runs: its argv `program`, the run folder, and `outlives` as in `Job`.

    Ranks need the variables of `environment`. A YAML run has a `config`, a script its file in
    `script`, a module neither. `logs` is the folder with the output of each rank, if some ranks
    write to files only.
    """

    program: tuple[str, ...]
    folder: Path | None = None
    outlives: bool = False
    is_script: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    config: Config | None = None
    script: Path | None = None
    logs: Path | None = None


Targets = Callable[[int, str | None, Path | None], Target]
"""Makes a target from a number of ranks, what to resume from, and a run folder."""


def of_script(entry: Script | Module, options: ScriptOptions = _DEFAULTS) -> Target:
    """Return the target of a script or module whose ranks get `options`."""
    program = (*RANK, "--script", *options.words(), *entry.words, *entry.arguments)
    script = entry.path.absolute() if isinstance(entry, Script) else None
    logs = options.output / "logs" if options.output is not None and options.shown is not None else None
    return Target(program, options.output, is_script=True, script=script, logs=logs)


def script_targets(
    entry: Script | Module, engine: str, output: Path | None, shown: tuple[int, ...], elastic: bool, *, claim: bool
) -> Targets:
    """Return the targets of a script or module, which are the same for every start.

    Only the ranks in `shown` write to the terminal, unless ranks come and go (`elastic`). `claim`
    makes the run folder.
    """
    options = ScriptOptions(
        script_engine(engine),
        _script_folder(entry, output, claim),
        None if elastic else shown,
        tag=len(shown) > 1 and not elastic,
    )
    target = of_script(entry, options)
    return lambda ranks, resume, folder: target


def check_module(name: str, environment: Mapping[str, str]) -> None:
    """Raise UserError if ranks with these variables would not find the module `name`."""
    if name.partition(".")[0] in _FOUND_BY_RANKS:
        return
    added = environment.get("PYTHONPATH", "").split(os.pathsep)
    problem = targets.missing(name, [os.getcwd(), *filter(None, added), *sys.path])
    if problem is not None:
        raise UserError(f"-m {name}: {problem}")


def of_yaml(
    file: Path,
    config: Config,
    *,
    output: Path | None,
    resume: str | None,
    claim: bool = False,
    **launch: Any,
) -> Target:
    """Return the target of a YAML file with the configuration `config`.

    `claim` makes the run folder at once, so that no other run takes its name. `launch` has the
    other fields of `config.launch.Launch`.
    """
    from hvd_train.config import words
    from hvd_train.config.launch import Launch, to_document

    folder, source = _folders(file, output, resume, claim)
    settings = Launch(output=str(folder), resume=None if source is None else str(source), **launch)
    outlives = config.sync.asynchronous
    word, variables = words.split(to_document(config, settings))
    return Target((*RANK, word), folder, outlives, environment=variables, config=config)


@dataclass(frozen=True)
class YamlTargets:
    """Makes the targets of a YAML file.

    `tee`, `columns` and `check_collectives` are fields of `config.launch.Launch`.
    """

    path: Path
    config: Config
    engine: str
    tee: tuple[int, ...]
    columns: int | None
    check_collectives: bool
    emulation: Emulation
    claim: bool

    def __call__(self, ranks: int, resume: str | None, output: Path | None) -> Target:
        """Return the target for `ranks` ranks; UserError if there is nothing to resume from."""
        return of_yaml(
            self.path,
            self.config,
            output=output,
            resume=resume,
            claim=self.claim,
            world_size=ranks,
            engine=self.engine,
            tee=[rank for rank in self.tee if rank < ranks],
            columns=self.columns,
            check_collectives=self.check_collectives,
            emulate=self.emulation.section(ranks),
        )


def _script_folder(entry: Script | Module, output: Path | None, claim: bool) -> Path | None:
    """Return the run folder of a script; None for `--output /dev/null`."""
    if output == Path(os.devnull):
        return None
    if output is not None and (output / RECORD).is_file():
        return output.absolute()
    if output is not None and output.exists():
        raise UserError(f"--output: {output} exists; give another folder")
    return _new_folder(entry.name, output, claim)


def _folders(file: Path, output: Path | None, resume: str | None, claim: bool) -> tuple[Path, Path | None]:
    """Return the run folder to write, and the folder to resume from."""
    if output is not None and awaits_start(output):
        return output.absolute(), None
    if resume is None:
        return _new_folder(file.stem, output, claim), None
    source = _latest(file, output) if resume == "latest" else _marked(Path(resume))
    if not source.is_dir():
        raise UserError(f"--resume: {source}: no such folder; expected 'latest', a run folder or a checkpoint in one")
    source = Path(os.path.abspath(source))
    return (output or _run_of(source)).absolute(), source


def _new_folder(stem: str, output: Path | None, claim: bool) -> Path:
    return new_run_folder(stem, output, dry=not claim, otherwise=f"resume the run in it with --resume {output}")


def _latest(file: Path, output: Path | None) -> Path:
    latest = output or newest_run(file.stem)
    if latest is None:
        raise UserError(f"--resume latest: no run of {file.name} in runs/; give the run folder")
    return latest


def _marked(source: Path) -> Path:
    """Return the checkpoint that the file `source` names, if it is the best.json of a run; else `source`."""
    if source.name != "best.json" or not source.is_file():
        return source
    try:
        return source.parent / str(json.loads(source.read_text(encoding="utf-8"))["folder"])
    except (ValueError, TypeError, KeyError):
        raise UserError(f"--resume: {source} is damaged; give a run folder or a checkpoint in one") from None


def _run_of(source: Path) -> Path:
    """Return `source`, or its run folder if it is a checkpoint, abandoned or not."""
    if not (source / MANIFEST).is_file():
        return source
    folder = run_of(source)
    if folder is None:
        raise UserError(f"--resume: the checkpoint {source} is not in a run folder; give the run folder with --output")
    return folder

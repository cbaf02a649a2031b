"""What `ddl run` is asked to run, as the argv of one rank."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli import run_folder
from hvd_train import internal
from hvd_train.errors import UserError
from hvd_train.plugins import asynchronous
from hvd_train.script_options import Options
from hvd_train.submitted import RECORD, awaits_start

RANK = (sys.executable, "-m", "mpi4py", internal.PROGRAM, "hvd_train")
ALONE = Options()


@dataclass(frozen=True)
class Target:
    """`program` is one rank's argv; `folder` is where a YAML run leaves its files; `outlives` as in `launchers.base.Job`.

    Ranks need the variables of `environment`, which are part of what they are told.
    """

    program: tuple[str, ...]
    folder: Path | None = None
    outlives: bool = False
    is_script: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


def of_module(name: str, arguments: Sequence[str], options: Options = ALONE) -> Target:
    return Target((*RANK, "--script", *options.words(), "-m", name, *arguments), options.output, is_script=True)


def check_script(file: Path) -> None:
    """UserError where there is no such file."""
    if not os.path.isfile(file):
        raise UserError(f"{file}: no such file; expected a Python script")


def of_script(file: Path, arguments: Sequence[str], options: Options = ALONE) -> Target:
    program = (*RANK, "--script", *options.words(), str(file.absolute()), *arguments)
    return Target(program, options.output, is_script=True)


def of_scripts_run(module: str | None, file: Path, output: Path | None, *, claim: bool) -> Path | None:
    """The run folder of a module or script: as for a YAML file, but none for `--output /dev/null`.

    UserError where there is no such script.
    """
    if module is None:
        check_script(file)
    name = file.stem if module is None else module.replace(".", "-")
    if output == Path(os.devnull):
        return None
    if output is not None and (output / RECORD).is_file():
        return output.absolute()
    if output is not None and output.exists():
        raise UserError(f"--output: {output} exists; give another folder")
    return _new_folder(name, output, claim)


def of_yaml(
    file: Path,
    overrides: Sequence[str],
    *,
    output: Path | None,
    resume: str | None,
    claim: bool = False,
    **launch: Any,
) -> Target:
    """`claim` makes the run folder at once, for this run alone; `launch` has the other fields of `hvd_train.config.Launch`."""
    from cli.configuration import load
    from hvd_train import words
    from hvd_train.config import Launch, to_document

    config = load(file, overrides)
    folder, source = _folders(file, output, resume, claim)
    told = Launch(output=str(folder), resume=None if source is None else str(source), **launch)
    outlives = asynchronous(config.sync.strategy, config.sync.options)
    word, variables = words.split(to_document(config, told))
    return Target((*RANK, word), folder, outlives, environment=variables)


def _folders(file: Path, output: Path | None, resume: str | None, claim: bool) -> tuple[Path, Path | None]:
    """The run folder to write, and what to resume from."""
    if output is not None and awaits_start(output):
        return output.absolute(), None
    if resume is None:
        return _new_folder(file.stem, output, claim), None
    source = _latest(file, output) if resume == "latest" else Path(resume)
    if not source.is_dir():
        raise UserError(f"--resume: {source}: no such folder; expected 'latest', a run folder or a checkpoint in one")
    source = Path(os.path.abspath(source))
    return (output or _run_of(source)).absolute(), source


def _new_folder(stem: str, output: Path | None, claim: bool) -> Path:
    return run_folder.new(stem, output, dry=not claim, otherwise=f"--resume {output} to go on in it")


def _latest(file: Path, output: Path | None) -> Path:
    latest = output or run_folder.newest(file.stem)
    if latest is None:
        raise UserError(f"--resume latest: no run of {file.name} in runs/; give its folder")
    return latest


def _run_of(source: Path) -> Path:
    """The run folder that `source` is, or that the checkpoint `source` is in, put aside or not."""
    if not (source / "manifest.json").is_file():
        return source
    holder = source.parent.parent if source.parent.name.startswith("abandoned-") else source.parent
    if holder.name != "checkpoints":
        raise UserError(
            f"--resume: the checkpoint {source} is in no run folder; say by --output where the run is to go"
        )
    return holder.parent

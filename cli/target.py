"""What `ddl run` is asked to run, as the argv of one rank."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvd_train import internal
from hvd_train.errors import UserError
from hvd_train.plugins import asynchronous
from hvd_train.submitted import awaits_start

RANK = (sys.executable, "-m", "mpi4py", internal.PROGRAM, "hvd_train")


@dataclass(frozen=True)
class Target:
    """`program` is one rank's argv; `folder` is where a YAML run leaves its files; `outlives` as in `launchers.base.Job`."""

    program: tuple[str, ...]
    folder: Path | None = None
    outlives: bool = False


def of_module(name: str, arguments: Sequence[str], engine: str | None = None) -> Target:
    """`engine` says what `import horovod` gives the program; without, what Python finds."""
    return Target((*RANK, "--script", *_engine(engine), "-m", name, *arguments))


def of_script(file: Path, arguments: Sequence[str], engine: str | None = None) -> Target:
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected a Python script")
    return Target((*RANK, "--script", *_engine(engine), str(file.absolute()), *arguments))


def of_yaml(file: Path, overrides: Sequence[str], *, output: Path | None, resume: str | None, **launch: Any) -> Target:
    """`launch` has the other fields of `hvd_train.config.Launch`."""
    from cli.configuration import load
    from hvd_train.config import Launch, to_document

    config = load(file, overrides)
    folder, source = _folders(file, output, resume)
    told = Launch(output=str(folder), resume=None if source is None else str(source), **launch)
    outlives = asynchronous(config.sync.strategy, config.sync.options)
    return Target((*RANK, to_document(config, told)), folder, outlives)


def _engine(name: str | None) -> tuple[str, ...]:
    return () if name is None else (f"--engine={name}",)


def _folders(file: Path, output: Path | None, resume: str | None) -> tuple[Path, Path | None]:
    """The run folder to write, and what to resume from."""
    if resume is None or (output is not None and awaits_start(output)):
        folder = output or Path("runs") / f"{file.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        if folder.exists() and not awaits_start(folder):
            raise UserError(f"--output: {folder} exists; give another folder, or --resume {folder} to go on in it")
        return folder.absolute(), None
    source = _latest(file, output) if resume == "latest" else Path(resume)
    if not source.is_dir():
        raise UserError(f"--resume: {source}: no such folder; expected 'latest', a run folder or a checkpoint in one")
    source = Path(os.path.abspath(source))
    return (output or _run_of(source)).absolute(), source


def _latest(file: Path, output: Path | None) -> Path:
    if output is not None:
        return output
    name = re.compile(re.escape(file.stem) + r"-\d{8}-\d{6}")
    runs = sorted(path for path in Path("runs").glob("*") if name.fullmatch(path.name) and path.is_dir())
    if not runs:
        raise UserError(f"--resume latest: no run of {file.name} in runs/; give its folder")
    return runs[-1]


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

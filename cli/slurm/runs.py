"""Run folders of submitted jobs: what was submitted, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvd_train import strict_json
from hvd_train.errors import UserError
from hvd_train.submitted import RECORD

ATTEMPTS = "attempts.jsonl"
BEGAN = "began"
"""Names the newest attempt: its job, and how often SLURM had started that before."""
STATE = "state.json"
_LINES = 2**16
"""Bytes at the end of a file that hold its last lines."""
_LOG = re.compile(r"slurm-(\d+)(?:_\d+)?\.log")


@dataclass(frozen=True)
class Submitted:
    """A run folder and its job, None before it has a number; `task` is that within an array, whose others lie beside."""

    folder: Path
    job: str | None
    task: str | None = None
    overrides: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """What squeue calls it."""
        return "_".join(filter(None, (self.job, self.task)))


def record(runs: Sequence[Submitted]) -> None:
    """Leave in each run folder what it was made for."""
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        values = {"job": run.job, "task": run.task, "overrides": run.overrides}
        draft = run.folder / f".{RECORD}"
        draft.write_text(strict_json.dumps(values, indent=1) + "\n", encoding="utf-8")
        draft.rename(run.folder / RECORD)


def read(folder: Path) -> Submitted | None:
    """The run of `folder`, if `ddl submit` made it. Of a script submitted again by hand, the job is the newest that began."""
    values = _json(folder / RECORD)
    if values is None:
        return None
    began = [str(_number(path)) for path in folder.glob("slurm-*.log")]
    job = max(filter(None, [values["job"], *began]), key=int, default=None)
    return Submitted(folder, job, values["task"], tuple(values["overrides"]))


def below(root: Path) -> tuple[Submitted, ...]:
    """The submitted runs of `root`: itself, those in it, or those in folders in it, oldest first."""
    found = {path.parent for depth in ("", "*/", "*/*/") for path in root.glob(f"{depth}{RECORD}")}
    runs = [read(folder) for folder in sorted(found, key=natural)]
    return tuple(run for run in runs if run is not None)


def required(root: Path) -> tuple[Submitted, ...]:
    """Like `below`; UserError where there are none."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected a run folder, such as those that ddl submit prints")
    runs = below(root)
    if not runs:
        raise UserError(f"{root}: no job was submitted for this folder; ddl submit makes such folders")
    return runs


def log(folder: Path) -> Path | None:
    """The newest log of the run; None before its job has begun."""
    return max(folder.glob("slurm-*.log"), key=_number, default=None)


def summary(folder: Path) -> dict[str, Any]:
    """summary.json of a run; empty before it has ended."""
    return _json(folder / "summary.json") or {}


def attempts(folder: Path) -> list[dict[str, Any]]:
    """How each attempt ended that lived to say so, oldest first; see `cli.slurm.end.End`."""
    path = folder / ATTEMPTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def newest_end(folder: Path) -> dict[str, Any] | None:
    """How the newest attempt ended; None where it goes on, or ended without a note."""
    said, began = attempts(folder), _began(folder)
    last = said[-1] if said else None
    return None if last and began and began != (last["job"], last["restarts"]) else last


def remember(folder: Path, state: dict[str, Any] | None) -> None:
    """Keep what SLURM says of the end of a job, which SLURM soon forgets; None: the job goes on."""
    path = folder / STATE
    with contextlib.suppress(OSError):  # the folder may be another user's
        if state is None:
            path.unlink(missing_ok=True)
        elif state != _json(path):
            with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f".{STATE}-", delete=False) as draft:
                draft.write(strict_json.dumps(state) + "\n")
            Path(draft.name).rename(path)


def remembered(folder: Path) -> dict[str, Any] | None:
    """What was last kept by `remember`, unless another attempt has begun since."""
    state, began = _json(folder / STATE), _began(folder)
    newer = state and began and (began[1] > state["restarts"] if began[0] == state["id"] else False)
    return None if newer else state


def total_steps(folder: Path) -> int | None:
    """All steps of the run, once its ranks have said how many."""
    return (_json(folder / "progress.json") or {}).get("total_steps")


def config(folder: Path) -> dict[str, Any]:
    return _json(folder / "config.json") or {}


def last_step(folder: Path) -> int | None:
    """The step of the newest whole line of metrics."""
    with contextlib.suppress(FileNotFoundError), (folder / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LINES))
        whole = [line for line in file.read().split(b"\n")[-3:] if line.startswith(b"{") and line.endswith(b"}")]
        return int(json.loads(whole[-1])["step"]) if whole else None
    return None


def _json(path: Path) -> dict[str, Any] | None:
    """What is in `path`; None where it is missing, or only half written."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return values
    return None


def _began(folder: Path) -> tuple[str, int] | None:
    """The newest attempt: its job, and how often SLURM had started that before."""
    with contextlib.suppress(OSError, ValueError):
        job, restarts = (folder / BEGAN).read_text(encoding="utf-8").split()
        return job, int(restarts)
    return None


def _number(log: Path) -> int:
    found = _LOG.fullmatch(log.name)
    return int(found[1]) if found else 0


def natural(folder: Path) -> tuple[Any, ...]:
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in folder.parts)

"""Files in the run folders of submitted jobs: what was submitted, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hvd_train.errors import UserError
from hvd_train.rank.submitted import RECORD
from hvd_train.text import strict_json

ATTEMPTS = "attempts.jsonl"
BEGAN = "began"
"""File with the newest attempt: its job, and how many times SLURM has restarted the job."""
STATE = "state.json"
FOR_GOOD = "no-requeue"
"""File that keeps a job whose run was asked to stop from requeueing itself."""
TAIL = 2**20
"""Bytes at the end of a log that are searched for messages."""
_LINES = 2**16
"""Bytes at the end of a file that contain its last lines."""
_LOG = re.compile(r"slurm-(\d+)(?:_\d+)?\.log")


@dataclass(frozen=True)
class Submitted:
    """A run folder and its job, which is None before the submission.

    `task` is the number of an array task.

    The run folders of the other tasks of the array are siblings of `folder`.
    """

    folder: Path
    job: str | None
    task: str | None = None
    overrides: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The id in the output of squeue."""
        return "_".join(filter(None, (self.job, self.task)))


def record(runs: Sequence[Submitted]) -> None:
    """Write each run to its folder, which is made if it is missing."""
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        values = {"job": run.job, "task": run.task, "overrides": run.overrides}
        draft = run.folder / f".{RECORD}"
        draft.write_text(strict_json.dumps(values, indent=1) + "\n", encoding="utf-8")
        draft.rename(run.folder / RECORD)


def recorded(folder: Path) -> Submitted | None:
    """Return the run of `folder` as it was submitted; None if `ddl submit` did not make it."""
    values = _json(folder / RECORD)
    return None if values is None else Submitted(folder, values["job"], values["task"], tuple(values["overrides"]))


def read(folder: Path) -> Submitted | None:
    """Return the run of `folder`; None if `ddl submit` did not make it.

    If a user submitted the script again with sbatch, the job is the newest one that has a log.
    """
    run = recorded(folder)
    if run is None:
        return None
    began = [str(_number(path)) for path in folder.glob("slurm-*.log")]
    return replace(run, job=max(filter(None, [run.job, *began]), key=int, default=None))


def forget(folder: Path) -> None:
    """Remove what an earlier job of the run left, before another job goes on in `folder`."""
    for name in (RECORD, FOR_GOOD, BEGAN, STATE):
        (folder / name).unlink(missing_ok=True)


def below(root: Path) -> tuple[Submitted, ...]:
    """Return the submitted runs in `root` and two levels below it, in the order of their names."""
    folders = {path.parent for depth in ("", "*/", "*/*/") for path in root.glob(f"{depth}{RECORD}")}
    runs = [read(folder) for folder in sorted(folders, key=natural)]
    return tuple(run for run in runs if run is not None)


def required(root: Path) -> tuple[Submitted, ...]:
    """Return the runs of `below`; UserError if there are none."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected a run folder, such as the one that ddl submit prints")
    runs = below(root)
    if not runs:
        raise UserError(
            f"{root}: no submitted job in this folder; expected a run folder of ddl submit, or a folder of them"
        )
    return runs


def log(folder: Path) -> Path | None:
    """Return the newest log of the run; None before its job has begun."""
    return max(folder.glob("slurm-*.log"), key=_number, default=None)


def log_tail(folder: Path) -> str:
    """Return the end of the newest log of the run; empty if the log is elsewhere."""
    path = log(folder)
    with contextlib.suppress(OSError), (path or folder).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        return file.read().decode(errors="replace")
    return ""


def summary(folder: Path) -> dict[str, Any]:
    """Return summary.json of a run; empty before the run has ended."""
    return _json(folder / "summary.json") or {}


def attempts(folder: Path) -> list[dict[str, Any]]:
    """Return the recorded ends of the attempts, oldest first (fields of `cli.slurm.end.End`)."""
    path = folder / ATTEMPTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def newest_end(folder: Path) -> dict[str, Any] | None:
    """Return how the newest attempt ended; None if it goes on or left no record."""
    ends, began = attempts(folder), _began(folder)
    last = ends[-1] if ends else None
    return None if last and began and began != (last["job"], last["restarts"]) else last


def remember(folder: Path, state: dict[str, Any] | None) -> None:
    """Keep the final state of a job, which SLURM soon forgets.

    None removes it, because the job goes on.
    """
    path = folder / STATE
    with contextlib.suppress(OSError):  # the folder may be another user's
        if state is None:
            path.unlink(missing_ok=True)
        elif state != _json(path):
            with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f".{STATE}-", delete=False) as draft:
                draft.write(strict_json.dumps(state) + "\n")
            Path(draft.name).rename(path)


def remembered(folder: Path) -> dict[str, Any] | None:
    """Return the state kept by `remember`; None if another attempt has begun since."""
    state, began = _json(folder / STATE), _began(folder)
    newer = state and began and (began[1] > state["restarts"] if began[0] == state["id"] else False)
    return None if newer else state


def job_that_began(folder: Path) -> str | None:
    """Return the job of the newest attempt that has begun in this run folder; None without one."""
    began = _began(folder)
    return began and began[0]


def total_steps(folder: Path) -> int | None:
    """Return the number of steps of the run; None before its ranks have reported it."""
    return (_json(folder / "progress.json") or {}).get("total_steps")


def config(folder: Path) -> dict[str, Any]:
    """Return config.json of a run; empty before the run has begun."""
    return _json(folder / "config.json") or {}


def last_step(folder: Path) -> int | None:
    """Return the step of the newest complete line of metrics; None without one."""
    with contextlib.suppress(FileNotFoundError), (folder / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LINES))
        whole = [line for line in file.read().split(b"\n")[-3:] if line.startswith(b"{") and line.endswith(b"}")]
        return int(json.loads(whole[-1])["step"]) if whole else None
    return None


def _json(path: Path) -> dict[str, Any] | None:
    """Return the content of `path`; None if the file is missing or incomplete."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return values
    return None


def _began(folder: Path) -> tuple[str, int] | None:
    """Return the newest attempt: its job, and how many times SLURM has restarted the job."""
    with contextlib.suppress(OSError, ValueError):
        job, restarts = (folder / BEGAN).read_text(encoding="utf-8").split()
        return job, int(restarts)
    return None


def _number(log: Path) -> int:
    match = _LOG.fullmatch(log.name)
    return int(match[1]) if match else 0


def natural(folder: Path) -> tuple[Any, ...]:
    """Return a sort key under which the folder 10 comes after the folder 9."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in folder.parts)

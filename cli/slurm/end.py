"""The end of a batch script: `cli.slurm.end FOLDER CODE` (`hvd_train.internal`), CODE being that of `ddl run`.

It finds out why the run ended, notes that in summary.json and attempts.jsonl, puts a job whose ranks were stopped, or that
lost a node, in the queue again, and exits with the code of the job.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from cli.slurm import control, nodes, runs
from hvd_train import strict_json
from hvd_train.errors import ExitCode, UserError

Cause = Literal[
    "finished", "failure", "preparation", "time limit", "preemption", "node failure", "requeued", "cancelled"
]

SLACK = 60
"""Seconds by which SLURM may be early with its notice of the end."""

TAIL = 2**20
"""Bytes at the end of a log in which SLURM's last words are looked for."""

STOPPED = {int(ExitCode.STOPPED), 128 + signal.SIGUSR1, 128 + signal.SIGTERM}
"""Codes of a run that was told to stop; the latter two where it was told before there was anything to save."""

_CAUSES: dict[str, Cause] = {
    "TIME LIMIT": "time limit",
    "PREEMPTION": "preemption",
    "NODE FAILURE": "node failure",
    "JOB REQUEUE": "requeued",
}


@dataclass(frozen=True)
class End:
    """How one attempt of a job ended, and whether it asks for another.

    `requeues` counts all that it asked for, `restarts` all that SLURM made, those after the loss of a node included.
    """

    job: str
    cause: Cause
    exit_code: int
    again: bool
    requeues: int
    restarts: int


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="cli.slurm.end", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("code", type=int)
    parser.add_argument("--began", action="store_true", help="ddl run was started")
    parser.add_argument("--notice", type=int, required=True)
    parser.add_argument("--max-requeues", type=int, required=True)
    told = parser.parse_args(arguments)
    job = os.environ["SLURM_JOB_ID"]
    lost = nodes.lost() if told.code == ExitCode.FAILURE else ()
    ended_by_slurm = words_of_slurm(_log(told.folder), _began())
    cause = cause_of(told.code, ended_by_slurm, _seconds_left(job), told.notice, told.began)
    cause = "node failure" if lost else cause
    before = sum(attempt["again"] for attempt in runs.attempts(told.folder))
    again = (bool(lost) or told.code in STOPPED) and ended_by_slurm is None and before < told.max_requeues
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    end = End(job, cause, exit_code(told.code, cause), again, before + again, restarts)
    note(told.folder, end)
    _say(end, told.max_requeues, lost)
    try:
        if again:
            control.requeue(job)
    except UserError as error:
        print(f"ddl: not queued again: {error}", file=sys.stderr)
    return end.exit_code


def words_of_slurm(log: str, began: float) -> str | None:
    """Why SLURM itself ended the attempt that began then, as its daemon writes it in the log; empty where by hand."""
    said = re.findall(r"\*\*\* JOB \d+ ON \S+ CANCELLED AT (\S+)(?: DUE TO ([A-Z ]+))?[ ,*]", log)
    return next((why.strip() for at, why in said if _time(at) >= int(began)), None)


def cause_of(code: int, ended_by_slurm: str | None, seconds_left: int | None, notice: int, began: bool = True) -> Cause:
    if ended_by_slurm is not None:
        return _CAUSES.get(ended_by_slurm, "cancelled")
    if code == 0:
        return "finished"
    if code not in STOPPED:
        return "failure" if began else "preparation"
    at_its_end = seconds_left is not None and seconds_left <= notice + SLACK
    return "time limit" if at_its_end else "preemption"


def exit_code(code: int, cause: Cause) -> int:
    """The job's: what SLURM did is no failure of the program that it ended."""
    if code in {0, ExitCode.STOPPED} or cause in {"finished", "failure", "preparation"}:
        return code
    return {"time limit": int(ExitCode.TIMEOUT), "node failure": int(ExitCode.NODE_LOST)}.get(
        cause, 128 + signal.SIGTERM
    )


def note(folder: Path, end: End) -> None:
    """Put `end` into summary.json, which a script and a run that failed have not written, or of an earlier attempt."""
    summary: dict[str, Any] = runs.summary(folder)
    if end.exit_code not in {ExitCode.OK, ExitCode.STOPPED}:
        summary["ended"] = f"{end.cause} (exit code {end.exit_code})"
    elif "slurm" in summary or "ended" not in summary:
        summary["ended"] = end.cause
    draft = folder / ".summary.json"
    draft.write_text(strict_json.dumps({**summary, "slurm": asdict(end)}, indent=1) + "\n", encoding="utf-8")
    draft.rename(folder / "summary.json")
    with (folder / runs.ATTEMPTS).open("a", encoding="utf-8") as file:
        file.write(strict_json.dumps({"time": time.time(), **asdict(end)}) + "\n")


def _say(end: End, most: int, lost: Sequence[str]) -> None:
    text = f"job {end.job}: {end.cause}, exit code {end.exit_code}"
    if lost:
        text += f"; SLURM does not reach {', '.join(lost)}"
    if end.again:
        text += f"; it goes on from its last checkpoint when SLURM starts it again ({end.requeues} of {most} requeues)"
    elif end.exit_code in STOPPED and end.cause in {"time limit", "preemption"}:
        text += f"; not queued again after {most} times: sbatch job.sh goes on from its last checkpoint"
    print(f"ddl: {text}", file=sys.stderr, flush=True)


def _log(folder: Path) -> str:
    """The end of the job's log; empty where it was sent elsewhere."""
    path = runs.log(folder)
    with contextlib.suppress(OSError), (path or folder).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        return file.read().decode(errors="replace")
    return ""


def _began() -> float:
    """When the batch script began, as whose process, by exec, this one goes on."""
    return float(psutil.Process().create_time())


def _time(text: str) -> float:
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0.0  # a site may have a format of its own: without a time, the words are of no attempt


def _seconds_left(job: str) -> int | None:
    with contextlib.suppress(UserError):
        return next((s.seconds_left for s in control.states(job)), None)
    return None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM may end the job now, and leaves time to note that
    sys.exit(main(sys.argv[1:]))

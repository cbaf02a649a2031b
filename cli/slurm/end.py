"""The end of a batch script: `cli.slurm.end FOLDER CODE`, where CODE is the exit code of `ddl run`.

The program (started through `hvd_train.rank.internal`) determines why the run ended and writes the
cause to summary.json and attempts.jsonl. It requeues a job whose ranks were stopped or that lost a
node, and exits with the code of the job.
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

from cli.runs import records
from cli.slurm import control, nodes
from hvd_train.errors import ExitCode, UserError
from hvd_train.text import strict_json

Cause = Literal[
    "finished", "failure", "preparation", "time limit", "preemption", "node failure", "requeued", "cancelled", "stopped"
]

SLACK = 60
"""Seconds by which SLURM may send the signal before the end too early."""

STOPPED = {int(ExitCode.STOPPED), 128 + signal.SIGUSR1, 128 + signal.SIGTERM}
"""Exit codes of a run that was asked to stop; the last two mean that it had nothing to save yet."""

_CAUSES: dict[str, Cause] = {
    "TIME LIMIT": "time limit",
    "PREEMPTION": "preemption",
    "NODE FAILURE": "node failure",
    "JOB REQUEUE": "requeued",
}


@dataclass(frozen=True)
class End:
    """How one attempt of a job ended. `again` is True if the job requeues itself.

    `requeues` counts the requeues by the job itself, `restarts` all restarts by SLURM, those after
    the loss of a node included.
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
    options = parser.parse_args(arguments)
    lost = nodes.lost() if options.code == ExitCode.FAILURE else ()
    end = _end(os.environ["SLURM_JOB_ID"], options, lost)
    note(options.folder, end)
    _say(end, options.max_requeues, lost)
    try:
        if end.again:
            control.requeue(end.job)
    except UserError as error:
        print(f"ddl: the job could not be requeued: {error}", file=sys.stderr)
    return end.exit_code


def _end(job: str, options: argparse.Namespace, lost: Sequence[str]) -> End:
    """Return how this attempt of `job` ended; `lost` are the nodes that SLURM cannot reach."""
    by_slurm = reason_in_log(records.log_tail(options.folder), _began())
    cause = cause_of(options.code, by_slurm, _seconds_left(job), options.notice, options.began)
    if options.code in STOPPED and by_slurm is None and (options.folder / records.FOR_GOOD).exists():
        cause = "stopped"
    cause = "node failure" if lost else cause
    requeues = sum(attempt["again"] for attempt in records.attempts(options.folder))
    may_requeue = by_slurm is None and cause != "stopped" and requeues < options.max_requeues
    again = (bool(lost) or options.code in STOPPED) and may_requeue
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return End(job, cause, exit_code(options.code, cause), again, requeues + again, restarts)


def reason_in_log(log: str, began: float) -> str | None:
    """Return why SLURM ended the attempt that began at `began` (Unix time), from the log.

    The reason is empty for a job that a person cancelled, and None if SLURM did not end the
    attempt.
    """
    messages = re.findall(r"\*\*\* JOB \d+ ON \S+ CANCELLED AT (\S+)(?: DUE TO ([A-Z ]+))?[ ,*]", log)
    return next((why.strip() for at, why in messages if _time(at) >= int(began)), None)


def cause_of(code: int, by_slurm: str | None, seconds_left: int | None, notice: int, began: bool = True) -> Cause:
    """Return why an attempt ended.

    `by_slurm` is the result of `reason_in_log`. A stopped run with more than `notice` seconds and
    `SLACK` left was preempted. `began` is False if the script ended before `ddl run`.
    """
    if by_slurm is not None:
        return _CAUSES.get(by_slurm, "cancelled")
    if code == 0:
        return "finished"
    if code not in STOPPED:
        return "failure" if began else "preparation"
    at_its_end = seconds_left is not None and seconds_left <= notice + SLACK
    return "time limit" if at_its_end else "preemption"


def exit_code(code: int, cause: Cause) -> int:
    """Return the exit code of the job; a program that SLURM ends has not failed."""
    if code in {0, ExitCode.STOPPED} or cause in {"finished", "failure", "preparation"}:
        return code
    return {"time limit": int(ExitCode.TIMEOUT), "node failure": int(ExitCode.NODE_LOST)}.get(
        cause, 128 + signal.SIGTERM
    )


def note(folder: Path, end: End) -> None:
    """Add `end` to attempts.jsonl and summary.json, which may be of an earlier attempt."""
    summary: dict[str, Any] = records.summary(folder)
    if end.exit_code not in {ExitCode.OK, ExitCode.STOPPED}:
        summary["ended"] = f"{end.cause} (exit code {end.exit_code})"
    elif "slurm" in summary or "ended" not in summary:
        summary["ended"] = end.cause
    draft = folder / ".summary.json"
    draft.write_text(strict_json.dumps({**summary, "slurm": asdict(end)}, indent=1) + "\n", encoding="utf-8")
    draft.rename(folder / "summary.json")
    with (folder / records.ATTEMPTS).open("a", encoding="utf-8") as file:
        file.write(strict_json.dumps({"time": time.time(), **asdict(end)}) + "\n")


def _say(end: End, most: int, lost: Sequence[str]) -> None:
    text = f"job {end.job}: {end.cause}, exit code {end.exit_code}"
    if lost:
        text += f"; SLURM cannot reach {', '.join(lost)}"
    if end.again:
        text += f"; requeued, to resume from its last checkpoint ({end.requeues} of {most} requeues)"
    elif end.exit_code in STOPPED and end.cause in {"time limit", "preemption"}:
        text += f"; not requeued again after {most} requeues; resume from its last checkpoint with: sbatch job.sh"
    print(f"ddl: {text}", file=sys.stderr, flush=True)


def _began() -> float:
    """Return when the batch script began: it replaced its own process by this program (exec)."""
    return float(psutil.Process().create_time())


def _time(text: str) -> float:
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0.0  # a site may configure another format; such a message belongs to no attempt


def _seconds_left(job: str) -> int | None:
    with contextlib.suppress(UserError):
        return next((s.seconds_left for s in control.states(job)), None)
    return None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM may end the job now; there is time to note the end
    sys.exit(main(sys.argv[1:]))

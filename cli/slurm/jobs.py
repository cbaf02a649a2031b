"""The states of submitted runs, from SLURM and from their run folders."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from cli.hosts import notation
from cli.runs import records
from cli.runs.records import Submitted
from cli.slurm import control
from cli.slurm.control import JobStatus
from hvd_train.errors import ExitCode

FORGOTTEN = "FORGOTTEN"

_BY_SLURM = {
    "COMPLETED": ("finished", ExitCode.OK),
    "TIMEOUT": ("time limit", ExitCode.TIMEOUT),
    "DEADLINE": ("time limit", ExitCode.TIMEOUT),
    "NODE_FAIL": ("node failure", ExitCode.NODE_LOST),
    "BOOT_FAIL": ("node failure", ExitCode.NODE_LOST),
    "OUT_OF_MEMORY": ("out of memory", ExitCode.FAILURE),
}
"""Cause and exit code of the states that decide alone, whatever the job itself noted."""

_ENDED_EARLY = {"CANCELLED": "cancelled", "PREEMPTED": "preemption"}
_STATES = {
    "finished": "COMPLETED",
    "cancelled": "CANCELLED",
    "node failure": "NODE_FAIL",
    "preemption": "PREEMPTED",
}


def states(submitted: Iterable[Submitted]) -> list[tuple[Submitted, JobStatus]]:
    """Return each run with the state of its job, from the run folder if SLURM has forgotten it."""
    submitted = tuple(submitted)
    known = control.known({run.job for run in submitted if run.job is not None})
    return [(run, state_of(run, known.get(run.job or "", ()))) for run in submitted]


def state_of(run: Submitted, states: Sequence[JobStatus]) -> JobStatus:
    """Return the state of `run` among the states of its job, and keep a final state in the folder.

    SLURM lists the waiting tasks of an array as one state.
    """
    state = next((s for s in states if run.task is None or run.task in _tasks(s)), None)
    if state is None:
        return _recalled(run)
    records.remember(run.folder, None if state.active else {"job": run.job, **asdict(state)})
    return state


def outcome(run: Submitted, state: JobStatus) -> tuple[str, int | None]:
    """Return the cause and the exit code of the end of a job.

    The exit code is None if it is unknown or the job has not ended; then the cause is why it waits.
    """
    if state.active:
        return state.reason, None
    if state.state in _BY_SLURM:
        cause, code = _BY_SLURM[state.state]
        return cause, int(code)
    if state.state == FORGOTTEN:
        return "" if records.job_that_began(run.folder) else "never began", None
    end = records.newest_end(run.folder)
    if end and (state.state != "CANCELLED" or end["cause"] == "cancelled"):
        return end["cause"], end["exit_code"]
    if state.state in _ENDED_EARLY:
        return _ENDED_EARLY[state.state], 128 + signal.SIGTERM
    return state.reason, state.exit_code or int(ExitCode.FAILURE)


def exit_code(run: Submitted, state: JobStatus) -> int:
    """Return the exit code of a job that has ended; 1 if it is unknown."""
    _, code = outcome(run, state)
    return int(ExitCode.FAILURE) if code is None else code


def _tasks(state: JobStatus) -> set[str]:
    try:
        return set(notation.tasks(state.task)) if state.task else set()
    except ValueError:  # an array that ddl submit did not make
        return set()


def _recalled(run: Submitted) -> JobStatus:
    """Return the last state that SLURM reported, or the state that the end of the job implies."""
    kept = records.remembered(run.folder)
    if kept and kept["job"] == run.job:
        return JobStatus(**{name: value for name, value in kept.items() if name != "job"})
    end = records.newest_end(run.folder)
    if end is None or end["again"] or end["cause"] == "requeued":
        return JobStatus(run.job or "", FORGOTTEN)
    code = end["exit_code"]
    state = "TIMEOUT" if code == ExitCode.TIMEOUT else _STATES.get(end["cause"], "FAILED")
    return JobStatus(run.job or "", state, exit_code=code)

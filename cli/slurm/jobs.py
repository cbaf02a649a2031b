"""Submitted runs, and what SLURM and their folders know of them."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from cli.slurm import control, notation, runs
from cli.slurm.control import State
from cli.slurm.runs import Submitted
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
"""Cause and exit code of states that say more than the job itself: a node or a time limit is no failure of the program."""

_ENDED_EARLY = {"CANCELLED": "cancelled", "PREEMPTED": "preemption"}
_STATES = {"finished": "COMPLETED", "cancelled": "CANCELLED", "node failure": "NODE_FAIL", "preemption": "PREEMPTED"}


def look(submitted: Iterable[Submitted]) -> list[tuple[Submitted, State]]:
    """Each run with the state of its job; of one that SLURM has forgotten, what its folder has kept."""
    submitted = tuple(submitted)
    known = control.known({run.job for run in submitted if run.job is not None})
    return [(run, state_of(run, known.get(run.job or "", ()))) for run in submitted]


def state_of(run: Submitted, states: Sequence[State]) -> State:
    """That of `run` among those of its job, where tasks of an array that wait stand together. The folder keeps an end."""
    found = next((state for state in states if run.task is None or run.task in _tasks(state)), None)
    if found is None:
        return _recalled(run)
    runs.remember(run.folder, None if found.going else {"job": run.job, **asdict(found)})
    return found


def outcome(run: Submitted, state: State) -> tuple[str, int | None]:
    """Why the job of a run ended, and its exit code, None where nobody knows. Of a job that goes on, why it waits."""
    if state.going:
        return state.reason, None
    if state.state in _BY_SLURM:
        cause, code = _BY_SLURM[state.state]
        return cause, int(code)
    if state.state == FORGOTTEN:
        return "", None
    end = runs.newest_end(run.folder)
    if end and (state.state != "CANCELLED" or end["cause"] == "cancelled"):
        return end["cause"], end["exit_code"]
    if state.state in _ENDED_EARLY:
        return _ENDED_EARLY[state.state], 128 + signal.SIGTERM
    return state.reason, state.exit_code or int(ExitCode.FAILURE)


def exit_code(run: Submitted, state: State) -> int:
    """What the job of a run that has ended exits with."""
    _, code = outcome(run, state)
    return int(ExitCode.FAILURE) if code is None else code


def _tasks(state: State) -> set[str]:
    try:
        return set(notation.tasks(state.task)) if state.task else set()
    except ValueError:  # not an array of ddl submit
        return set()


def _recalled(run: Submitted) -> State:
    """What SLURM said last, else what the job itself noted at its end."""
    kept = runs.remembered(run.folder)
    if kept and kept["job"] == run.job:
        return State(**{name: value for name, value in kept.items() if name != "job"})
    end = runs.newest_end(run.folder)
    if end is None or end["again"] or end["cause"] == "requeued":
        return State(run.job or "", FORGOTTEN)
    code = end["exit_code"]
    state = "TIMEOUT" if code == ExitCode.TIMEOUT else _STATES.get(end["cause"], "FAILED")
    return State(run.job or "", state, exit_code=code)

"""Submitted runs, and what SLURM knows of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cli.slurm import control, notation, runs
from cli.slurm.control import State
from cli.slurm.runs import Submitted
from hvd_train.errors import ExitCode

FORGOTTEN = "FORGOTTEN"

_CODES = {
    "TIMEOUT": ExitCode.TIMEOUT,
    "DEADLINE": ExitCode.TIMEOUT,
    "NODE_FAIL": ExitCode.NODE_LOST,
    "BOOT_FAIL": ExitCode.NODE_LOST,
}


def look(submitted: Iterable[Submitted]) -> list[tuple[Submitted, State]]:
    """Each run with the state of its job; one that SLURM has forgotten by how its last attempt ended."""
    submitted = tuple(submitted)
    known = {job: control.states(job) for job in {run.job for run in submitted} if job is not None}
    return [(run, state_of(run, known.get(run.job or "", ()))) for run in submitted]


def state_of(run: Submitted, states: Sequence[State]) -> State:
    """That of `run` among those of its job, where tasks of an array that wait stand together."""
    return next((state for state in states if run.task is None or run.task in _tasks(state)), _recorded(run))


def exit_code(run: Submitted, state: State) -> int:
    """What the job of a run that has ended exits with: a node or a time limit is no failure of the program."""
    if state.state in _CODES:
        return int(_CODES[state.state])
    if state.state == "COMPLETED":
        return 0
    said = runs.attempts(run.folder)
    return said[-1]["exit_code"] if said else state.exit_code or int(ExitCode.FAILURE)


def _tasks(state: State) -> set[str]:
    return set(notation.numbers(state.task.partition("%")[0])) if state.task else set()


def _recorded(run: Submitted) -> State:
    said = runs.attempts(run.folder)
    if not said or said[-1]["again"]:
        return State(run.job or "", FORGOTTEN)
    code = said[-1]["exit_code"]
    return State(run.job or "", "FAILED" if code else "COMPLETED", exit_code=code)

"""`ddl submit --wait`: print the log of a job as it grows, and return its exit code."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.progress import Progress

from cli.output.streams import say
from cli.runs import records
from cli.runs.records import Submitted
from cli.slurm import jobs, reasons
from cli.slurm.control import JobStatus
from cli.slurm.reasons import Reason
from hvd_train.errors import UserError
from hvd_train.text import display

SECONDS = (1.0, 10.0)
"""Interval between two queries of SLURM: at first, and the longest."""

States = Sequence[tuple[Submitted, JobStatus]]


def follow(folder: Path) -> int:
    """Print what the runs of `folder` write until all have ended, and return the largest exit code.

    The wait also ends once none of the remaining jobs can ever start.
    """
    submitted = records.required(folder)
    tails = [Tail(run.folder, len(submitted) > 1) for run in submitted]
    explained: set[str] = set()
    states: States = ()
    with _bar() as bar:
        task = bar.add_task("", total=None)
        for states in _polled(submitted):
            for line in itertools.chain.from_iterable(tail.lines() for tail in tails):
                bar.console.print(line, soft_wrap=True)
            for line in _explanations(states, explained):
                say(line)
            done, total = _progress(states)
            bar.update(task, description=_waiting(states), completed=done, total=total)
    return max(_exit_code(run, state) for run, state in states)


def _exit_code(run: Submitted, state: JobStatus) -> int:
    reason = _reason(state)
    return jobs.exit_code(run, state) if reason is None else reason.exit_code or 0


def _reason(state: JobStatus) -> Reason | None:
    return reasons.meaning(state.reason) if state.waiting else None


def _explanations(states: States, explained: set[str]) -> Iterator[str]:
    """Yield the explanation of each reason that is not in `explained`, and add it there."""
    for run, state in states:
        reason = _reason(state)
        if reason and state.reason not in explained:
            explained.add(state.reason)
            yield f"job {run.id} waits ({state.reason}): {reason.text}"
            if reason.exit_code is not None:
                yield f"it can never start; remove it from the queue with: ddl cancel {shlex.quote(str(run.folder))}"


class Tail:
    """Reads the new lines of the newest log in `folder`.

    Each line begins with the name of the folder if there are `others`.
    """

    def __init__(self, folder: Path, others: bool = False) -> None:
        self._folder, self._prefix = folder, f"{folder.name}: " if others else ""
        self._path: Path | None = None
        self._at, self._rest = 0, ""

    def lines(self) -> Iterator[str]:
        """Yield the complete lines since the last call."""
        path = records.log(self._folder)
        if path is None:
            return
        if path != self._path:
            self._path, self._at, self._rest = path, 0, ""
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            file.seek(self._at)
            *whole, self._rest = (self._rest + file.read()).split("\n")
            self._at = file.tell()
        for line in whole:
            yield self._prefix + line


def _polled(submitted: Sequence[Submitted]) -> Iterator[States]:
    """Poll SLURM with growing intervals until every run has ended or can never start."""
    states, interval = _poll(submitted), SECONDS[0]
    while states is None or any(state.active and _can_start(state) for _, state in states):
        if states is not None:
            yield states
        time.sleep(interval)
        interval = min(interval * 1.1, SECONDS[1])
        states = _poll(submitted) or states
    yield states


def _poll(submitted: Sequence[Submitted]) -> States | None:
    """Return the states; None while the controller is busy or restarts."""
    with contextlib.suppress(UserError):
        return jobs.states(submitted)
    return None


def _can_start(state: JobStatus) -> bool:
    reason = _reason(state)
    return reason is None or reason.exit_code is None


def _progress(states: States) -> tuple[int, int | None]:
    """Return the steps done and in total of a single run, or the ended and all of several runs."""
    if len(states) == 1:
        folder = states[0][0].folder
        return records.last_step(folder) or 0, records.total_steps(folder)
    return sum(not state.active for _, state in states), len(states)


def _waiting(states: States) -> str:
    """Return why the jobs wait; an empty text if one of them runs or all have ended."""
    active = [state for _, state in states if state.active]
    if not active or not all(state.waiting for state in active):
        return ""
    return f"waiting: {active[0].reason or active[0].state}"


def _bar() -> Progress:
    return display.progress(display.console(), disable=not sys.stdout.isatty())

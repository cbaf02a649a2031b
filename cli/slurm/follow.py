"""`ddl submit --wait`: the log of a job as it grows, and its exit code at the end."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.progress import Progress

from cli.slurm import jobs, reasons, runs
from cli.slurm.control import State
from cli.slurm.reasons import Reason
from cli.slurm.runs import Submitted
from cli.streams import say
from hvd_train import display
from hvd_train.errors import UserError

SECONDS = (1.0, 10.0)
"""Between two questions to SLURM: at first, and in the long run."""

Known = Sequence[tuple[Submitted, State]]


def follow(folder: Path) -> int:
    """Show what the runs of `folder` write until all have ended; the worst of their exit codes.

    The wait ends, too, once no job that is left can ever start.
    """
    submitted = runs.required(folder)
    tails = [Tail(run.folder, len(submitted) > 1) for run in submitted]
    said: set[str] = set()
    known: Known = ()
    with _bar() as bar:
        task = bar.add_task("", total=None)
        for known in _looks(submitted):
            for line in itertools.chain.from_iterable(tail.lines() for tail in tails):
                bar.console.print(line, soft_wrap=True)
            for line in _explained(known, said):
                say(line)
            done, total = _progress(known)
            bar.update(task, description=_waiting(known), completed=done, total=total)
    return max(_exit_code(run, state) for run, state in known)


def _exit_code(run: Submitted, state: State) -> int:
    reason = _reason(state)
    return jobs.exit_code(run, state) if reason is None else reason.exit_code or 0


def _reason(state: State) -> Reason | None:
    return reasons.meaning(state.reason) if state.waiting else None


def _explained(known: Known, said: set[str]) -> Iterator[str]:
    """A line for each reason that needs words, once."""
    for run, state in known:
        reason = _reason(state)
        if reason and state.reason not in said:
            said.add(state.reason)
            yield f"job {run.id} waits ({state.reason}): {reason.text}"
            if reason.exit_code is not None:
                yield f"it can never start: ddl cancel {shlex.quote(str(run.folder))} takes it out of the queue"


class Tail:
    """The lines that the newest log in `folder` gains, with the folder's name before each if there are `others`."""

    def __init__(self, folder: Path, others: bool = False) -> None:
        self._folder, self._mark = folder, f"{folder.name}: " if others else ""
        self._path: Path | None = None
        self._at, self._rest = 0, ""

    def lines(self) -> Iterator[str]:
        """What came since the last call."""
        path = runs.log(self._folder)
        if path is None:
            return
        if path != self._path:
            self._path, self._at, self._rest = path, 0, ""
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            file.seek(self._at)
            *whole, self._rest = (self._rest + file.read()).split("\n")
            self._at = file.tell()
        for line in whole:
            yield self._mark + line


def _looks(submitted: Sequence[Submitted]) -> Iterator[Known]:
    """What SLURM knows, time and again, until all runs have ended or can never start."""
    known, pause = _look(submitted), SECONDS[0]
    while known is None or any(state.going and _can_start(state) for _, state in known):
        if known is not None:
            yield known
        time.sleep(pause)
        pause = min(pause * 1.1, SECONDS[1])
        known = _look(submitted) or known
    yield known


def _look(submitted: Sequence[Submitted]) -> Known | None:
    with contextlib.suppress(UserError):  # a controller that is busy or restarts
        return jobs.look(submitted)
    return None


def _can_start(state: State) -> bool:
    reason = _reason(state)
    return reason is None or reason.exit_code is None


def _progress(known: Known) -> tuple[int, int | None]:
    """Steps of a single run; of several, those that have ended."""
    if len(known) == 1:
        folder = known[0][0].folder
        return runs.last_step(folder) or 0, runs.total_steps(folder)
    return sum(not state.going for _, state in known), len(known)


def _waiting(known: Known) -> str:
    """Why none runs, while none does."""
    states = [state for _, state in known if state.going]
    if not states or not all(state.waiting for state in states):
        return ""
    return f"waiting: {states[0].reason or states[0].state}"


def _bar() -> Progress:
    return display.progress(display.console(), disable=not sys.stdout.isatty())

"""`ddl submit --wait`: the log of a job as it grows, and its exit code at the end."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.progress import Progress

from cli.slurm import jobs, runs
from cli.slurm.control import State
from cli.slurm.runs import Submitted
from hvd_train import display
from hvd_train.errors import UserError

SECONDS = (1.0, 10.0)
"""Between two questions to SLURM: at first, and in the long run."""

Known = Sequence[tuple[Submitted, State]]


def follow(folder: Path) -> int:
    """Show what the runs of `folder` write until all have ended; the worst of their exit codes."""
    submitted = runs.required(folder)
    tails = [Tail(run.folder, len(submitted) > 1) for run in submitted]
    known: Known = ()
    with _bar() as bar:
        task = bar.add_task("", total=None)
        for known in _looks(submitted):
            for line in itertools.chain.from_iterable(tail.lines() for tail in tails):
                bar.console.print(line, soft_wrap=True)
            done, total = _progress(known, tails)
            bar.update(task, description=_waiting(known), completed=done, total=total)
    return max(jobs.exit_code(run, state) for run, state in known)


class Tail:
    """The lines that the newest log in `folder` gains, with the folder's name before each if there are `others`."""

    def __init__(self, folder: Path, others: bool = False) -> None:
        self._folder, self._mark = folder, f"{folder.name}: " if others else ""
        self._path: Path | None = None
        self._at, self._rest = 0, ""
        self.steps: int | None = None
        """All steps of the run, once its ranks have said how many."""

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
            self._hear(line.split())
            yield self._mark + line

    def _hear(self, words: Sequence[str]) -> None:
        if words[1:3] == ["steps", "on"] and words[0].isdigit():
            self.steps = int(words[0])


def _looks(submitted: Sequence[Submitted]) -> Iterator[Known]:
    """What SLURM knows, time and again, until all runs have ended."""
    known, pause = jobs.look(submitted), SECONDS[0]
    yield known
    while any(state.going for _, state in known):
        time.sleep(pause)
        pause = min(pause * 1.1, SECONDS[1])
        with contextlib.suppress(UserError):  # a controller that is busy or restarts
            known = jobs.look(submitted)
        yield known


def _progress(known: Known, tails: Sequence[Tail]) -> tuple[int, int | None]:
    """Steps of a single run; of several, those that have ended."""
    if len(known) == 1:
        return runs.last_step(known[0][0].folder) or 0, tails[0].steps
    return sum(not state.going for _, state in known), len(known)


def _waiting(known: Known) -> str:
    """Why none runs, while none does."""
    states = [state for _, state in known if state.going]
    if not states or not all(state.waiting for state in states):
        return ""
    return f"waiting: {states[0].reason or states[0].state}"


def _bar() -> Progress:
    return display.progress(display.console(), disable=not sys.stdout.isatty())

"""The contract of a task: what ranks do with a trained model in place of training.

A task is a file in `hvd_train/trained/tasks` whose `create(**options)` returns a `Task`. The worker
runs it on every rank, after the engine has started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hvd_train.comm.communicator import Communicator
from hvd_train.config.schema import Config
from hvd_train.rank.logs import Output
from hvd_train.text import display


@dataclass(frozen=True)
class TaskContext:
    """What a task knows of the run, and of the process that it runs in."""

    config: Config
    """The configuration of the run, perhaps with other data."""
    comm: Communicator
    checkpoint: Path
    folder: Path
    """The folder that rank 0 writes files to; it exists."""
    output: Output
    columns: int | None = None
    """Width of the terminal that shows progress; None without a terminal."""

    def warn(self, text: str) -> None:
        """Print a warning of rank 0."""
        if self.comm.rank == 0:
            self.output.warn(text)

    @contextmanager
    def progress(self, text: str, total: int) -> Iterator[Callable[[], None]]:
        """Show progress on the terminal of rank 0; the block calls the function after each of `total` parts."""
        columns = self.columns if self.comm.rank == 0 else None
        with open(self.output.errors, "w", encoding="utf-8", closefd=False) as file:
            console = display.console(file=file, force_terminal=columns is not None, width=columns)
            with display.progress(console, disable=columns is None, auto_refresh=False) as bar:
                task = bar.add_task(text, total=total)
                yield lambda: bar.update(task, advance=1, refresh=True)


class Task(Protocol):
    """A task with its options."""

    def run(self, context: TaskContext) -> dict[str, Any]:
        """Do the task on this rank; collective. Return its result, which counts on rank 0.

        The result is valid JSON. Raise UserError for what the user can mend: all ranks then end with
        exit code 2.
        """

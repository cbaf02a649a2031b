"""Consoles and progress bars that never read a name of a user as markup or emoji."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


def console(**options: Any) -> Console:
    """Return a console of rich that prints strings and table cells unchanged."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def words(template: str) -> TextColumn:
    """Return a column of a progress bar: `template`, filled with fields of the task, unchanged."""
    return TextColumn(template, markup=False)


def progress(shown_on: Console, *more: ProgressColumn, **options: Any) -> Progress:
    """Return a progress bar with description, steps, remaining time and `more`.

    It disappears at its end.
    """
    columns = (words("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), *more)
    return Progress(*columns, console=shown_on, transient=True, **options)

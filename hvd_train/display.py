"""Consoles and progress bars that show text as it is: what a user named is never taken for markup or emoji."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


def console(**options: Any) -> Console:
    """A console of rich that prints strings, and cells of tables, as they are."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def words(template: str) -> TextColumn:
    """A column of a progress bar that shows `template`, filled with what the task has, as it is."""
    return TextColumn(template, markup=False)


def progress(shown_on: Console, *more: ProgressColumn, **options: Any) -> Progress:
    """A bar that vanishes at its end: description, bar, steps, time left and `more`."""
    columns = (words("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), *more)
    return Progress(*columns, console=shown_on, transient=True, **options)

"""Text for a terminal, shown as it is: what a user named is never taken for markup, emoji or control characters."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


def printable(text: str) -> str:
    """`text` with each character that cannot be printed written as Python does in a string, such as \\n and \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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

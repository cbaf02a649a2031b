"""Draws every picture of a search."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

from cli.tune.show import importance
from cli.tune.show.pictures import fields, front, progress
from cli.tune.show.search import Absent, Search

DRAWINGS: dict[str, tuple[str, Callable[[Search], Figure]]] = {
    "history": ("History", progress.history),
    "curves": ("Learning curves", progress.curves),
    "importance": ("Importance of fields", fields.importance),
    "slices": ("Slices", fields.slices),
    "parallel": ("Parallel coordinates", fields.parallel),
    "pareto": ("Pareto front", front.pareto),
    "timeline": ("Timeline of slots", progress.timeline),
}
"""The title and the function of each picture, by the name of its file."""


@dataclass(frozen=True)
class Picture:
    """A drawing as PNG; without one, `note` says why."""

    name: str
    title: str
    png: bytes | None
    note: str = ""


def draw(search: Search) -> list[Picture]:
    """Return the pictures of `search`, in the order in which a person reads them."""
    names = [name for name in DRAWINGS if name != "pareto" or len(search.objectives) == 2]
    # Names of users are no mathematics, and may have characters that the font lacks.
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        return [_picture(search, name, *DRAWINGS[name]) for name in names]


def _picture(search: Search, name: str, title: str, drawing: Callable[[Search], Figure]) -> Picture:
    file = io.BytesIO()
    try:
        drawing(search).savefig(file, format="png")
    except Absent as why:
        return Picture(name, title, None, str(why))
    return Picture(name, title, file.getvalue(), _note(search) if name == "importance" else "")


def _note(search: Search) -> str:
    """Return what the importances do not cover."""
    found = importance.importances(search)
    few = (
        f"Estimated from {found.trials} of {found.complete:,} complete trials." if found.trials < found.complete else ""
    )
    names = ", ".join(found.left_out)
    left_out = f"Left out, because some complete trials do not vary them: {names}." if names else ""
    return " ".join(filter(None, (few, left_out)))

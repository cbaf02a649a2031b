"""Two objectives against each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cli.tune.show import configurations
from cli.tune.show.configurations import Configuration
from cli.tune.show.pictures.style import BEST, COLOURS, figure, range_of, tidy
from cli.tune.show.search import Absent, Search

APART = 25
"""Pixels between two numbers."""


def pareto(search: Search) -> Figure:
    """Draw the complete configurations, and the border of what they reached."""
    if len(search.objectives) != 2:
        raise Absent("A Pareto front is drawn for two objectives.")
    found = [c for c in search.configurations if c.objectives and all(map(math.isfinite, c.objectives))]
    if not found:
        raise Absent("No trial is complete.")
    first, second = search.objectives
    best = configurations.best(found, search.objectives)
    drawn = figure(5, f"Pareto front: {first.title} and {second.title}", width=8)
    axes = drawn.subplots()
    across, up = (range_of([c.objectives[i] for c in found], o) for i, o in enumerate(search.objectives))
    across.apply(axes, "x")
    up.apply(axes)
    axes.plot(
        across.clipped([c.objectives[0] for c in found]), up.clipped([c.objectives[1] for c in found]), "o",
        color=COLOURS["complete"], alpha=0.5, markersize=5, linestyle="", label="complete", clip_on=False,
    )  # fmt: skip
    axes.plot(
        across.clipped([c.objectives[0] for c in best]), up.clipped([c.objectives[1] for c in best]), "o-",
        color=BEST, drawstyle="steps-post", markersize=7, label=f"front: {len(best)} trials", clip_on=False,
    )  # fmt: skip
    for c in _apart(axes, best):
        x, y = c.objectives
        axes.annotate(f"{c.number}", (x, y), (5, 5), textcoords="offset points", fontsize=8.5, color=BEST)
    axes.set(xlabel=f"{first.title} ({_better(first.mode)})", ylabel=f"{second.title} ({_better(second.mode)})")
    axes.legend(frameon=False, fontsize=9, loc="best")
    tidy(axes)
    return drawn


def _apart(axes: Axes, found: Iterable[Configuration]) -> Iterator[Configuration]:
    """Yield configurations whose numbers do not cover one another."""
    last = (-math.inf, -math.inf)
    for c in found:
        x, y = axes.transData.transform(c.objectives)
        if math.dist((x, y), last) > APART:
            last = (x, y)
            yield c


def _better(mode: str) -> str:
    return "larger is better" if mode == "max" else "smaller is better"

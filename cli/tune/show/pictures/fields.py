"""What the varied fields have to do with the objective: slices, parallel coordinates and importance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cli.tune.show import configurations
from cli.tune.show.configurations import Configuration
from cli.tune.show.importance import importances
from cli.tune.show.pictures.style import (
    BEST,
    COLOURS,
    MOST_LINES,
    SHADES,
    WIDTH,
    figure,
    jitter,
    labels,
    logarithmic,
    natural,
    of_most,
    range_of,
    tidy,
    whole,
)
from cli.tune.show.search import Absent, Field, Search
from cli.tune.show.words import shortened
from hvd_train.text import strict_json

COLUMNS = 4
LONGEST = 16
"""Characters of a choice."""
NAME = 26
"""Characters of a field."""
ABSENT = -0.1
"""Height on an axis of parallel coordinates of a configuration that does not vary the field."""


@dataclass(frozen=True)
class Axis:
    """A field as an axis: `places` has where each configuration is, NaN if it has no value there.

    Choices are at 0, 1, 2 and so on, with `texts`; numbers are themselves, or logarithms if `log`.
    """

    name: str
    places: list[float]
    texts: tuple[str, ...] = ()
    log: bool = False


def axis(field: Field, found: Sequence[Configuration]) -> Axis:
    values = [c.values.get(field.name) for c in found]
    if field.number:
        return Axis(field.name, [math.nan if v is None else float(v) for v in values], log=field.log)
    keys = [None if field.name not in c.values else strict_json.dumps(c.values[field.name]) for c in found]
    choices = {key: value for key, value in zip(keys, values, strict=True) if key is not None}
    order = {key: place for place, key in enumerate(sorted(choices, key=lambda key: _order(choices[key])))}
    texts = labels([_named(choices[key]) for key in order], LONGEST)
    return Axis(field.name, [math.nan if key is None else float(order[key]) for key in keys], tuple(texts))


def _named(value: Any) -> Any:
    return "null" if value is None else value


def _order(value: Any) -> tuple[int, float, list[tuple[int, str]]]:
    """Return a sort key: numbers by size, then all others by their text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, value, []
    return 1, 0.0, natural(shortened(value, 10_000))


def slices(search: Search) -> Figure:
    """Draw the first objective over each varied field."""
    found = [c for c in search.configurations if c.last is not None]
    if not found or not search.fields:
        raise Absent("No trial has a value to draw over its fields.")
    objective = search.objectives[0]
    columns = min(COLUMNS, len(search.fields))
    rows = -(-len(search.fields) // columns)
    drawn = figure(0.9 + 2.7 * rows, f"{objective.title} over each field", width=max(6.5, WIDTH * columns / COLUMNS))
    panels = list(drawn.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for empty in panels[len(search.fields) :]:
        empty.set_axis_off()
    values = [c.last for c in found if c.last is not None]
    shown = range_of(values, objective)
    shown.apply(panels[0])
    numbers = Normalize(found[0].number, max(found[-1].number, found[0].number + 1))
    for place, (field, axes) in enumerate(zip(search.fields, panels, strict=False)):
        _slice(axes, axis(field, found), found, shown.clipped(values), numbers, search)
        if place % columns == 0:
            axes.set_ylabel(objective.title)
    whole(drawn.colorbar(ScalarMappable(numbers, SHADES), ax=panels, label="trial", aspect=30, pad=0.01).ax.yaxis)
    return drawn


def _slice(
    axes: Axes, over: Axis, found: list[Configuration], heights: list[float], numbers: Normalize, search: Search
) -> None:
    places = np.asarray(over.places)
    if over.texts:
        places = places + jitter(len(places), 0.2)
        axes.set_xlim(-0.6, len(over.texts) - 0.4)
        wide = sum(map(len, over.texts)) > 24
        axes.set_xticks(
            range(len(over.texts)), over.texts, fontsize=8, rotation=30 if wide else 0, ha="right" if wide else "center"
        )
    elif over.log:
        axes.set_xscale("log")
        low, high = _ends(over)
        logarithmic(axes.xaxis, math.exp(low), math.exp(high), most=4)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    complete = np.asarray([bool(c.objectives) for c in found])
    y = np.asarray(heights)
    axes.scatter(
        places[~complete],
        y[~complete],
        16,
        facecolors="none",
        edgecolors=COLOURS["waiting"],
        marker="v",
        linewidths=0.8,
    )
    colours = numbers(np.asarray([c.number for c in found]))
    axes.scatter(places[complete], y[complete], 22, c=colours[complete], cmap=SHADES, vmin=0, vmax=1, linewidths=0)
    best = {c.number for c in configurations.best(found, search.objectives)}
    chosen = np.asarray([c.number in best for c in found])
    axes.scatter(places[chosen], y[chosen], 90, facecolors="none", edgecolors=BEST, linewidths=1.8)
    axes.set_title(shortened(over.name, NAME), fontsize=10)
    axes.tick_params(labelsize=8)
    tidy(axes)


def parallel(search: Search) -> Figure:
    """Draw each complete configuration as a line across its fields and the first objective, better ones darker."""
    complete = [c for c in search.configurations if c.objectives and math.isfinite(c.objectives[0])]
    if not complete or not search.fields:
        raise Absent("No trial is complete.")
    found = configurations.ranked(complete, search.objectives)[:MOST_LINES]
    objective = search.objectives[0]
    shown = range_of([c.objectives[0] for c in found], objective)
    values = shown.clipped([c.objectives[0] for c in found])
    all_axes = [*(axis(field, found) for field in search.fields), Axis(objective.title, values, log=shown.log)]
    width = max(6.5, min(16, 1.5 + 1.4 * len(all_axes)))
    drawn = figure(4.8, f"Fields and {objective.title} of complete trials{of_most(complete)}", width)
    axes = drawn.subplots()
    lines = np.asarray([_scaled(one) for one in all_axes]).T
    alpha = max(0.2, min(0.8, 40 / len(found)))
    worst_first = sorted(range(len(found)), key=lambda i: values[i], reverse=objective.mode == "min")
    for rank, i in enumerate(worst_first, 1):
        colour = SHADES(rank / len(found))
        axes.plot(range(len(all_axes)), lines[i], "o-", color=colour, markersize=3, linewidth=1, alpha=alpha)
    numbers = [c.number for c in found]
    for best in configurations.best(found, search.objectives)[:1]:
        axes.plot(
            range(len(all_axes)), lines[numbers.index(best.number)], "o-", color=BEST, markersize=5, linewidth=2.6,
            zorder=4, label=f"best: trial {best.number}",
        )  # fmt: skip
    for place, one in enumerate(all_axes):
        _ticks(axes, place, one)
    axes.set_xticks(range(len(all_axes)), [shortened(one.name, NAME) for one in all_axes], rotation=20, ha="right")
    axes.tick_params(length=0)
    axes.set(yticks=[], xlim=(-0.4, len(all_axes) - 0.4), ylim=(lines.min() - 0.06, 1.06))
    axes.spines[:].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False, fontsize=9)
    return drawn


def _scaled(over: Axis) -> list[float]:
    """Return the places between 0 and 1, a choice's points beside one another, and `ABSENT` without a value."""
    places = np.log(over.places) if over.log else np.asarray(over.places)
    low, high = _ends(over)
    if over.texts:
        places = places + jitter(len(places), 0.12)
    return [ABSENT if math.isnan(place) else float(place) for place in (places - low) / (high - low)]


def _ends(over: Axis) -> tuple[float, float]:
    """Return the ends of an axis, which differ; logarithms if it is logarithmic."""
    if over.texts:
        return -0.3, len(over.texts) - 0.7
    places = np.log(over.places) if over.log else np.asarray(over.places)
    known = places[np.isfinite(places)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(axes: Axes, place: int, over: Axis) -> None:
    """Draw the line of an axis, and the values along it."""
    axes.plot([place, place], [0, 1], color="#888888", linewidth=0.8, zorder=0)
    low, high = _ends(over)
    if over.texts:
        marks = [((at - low) / (high - low), text) for at, text in enumerate(over.texts)]
    else:
        shares = np.linspace(0, 1, 4)
        numbers = [low + share * (high - low) for share in shares]
        texts = [shortened(math.exp(number) if over.log else number, 9) for number in numbers]
        marks = list(zip(shares, texts, strict=True))
    if any(map(math.isnan, over.places)):
        marks.append((ABSENT, "none"))
    for at, text in marks:
        axes.annotate(
            text, (place, at), (4, 0), textcoords="offset points", fontsize=7.5, va="center",
            zorder=5, bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6},
        )  # fmt: skip


def importance(search: Search) -> Figure:
    """Draw how much of the variance of each objective each field explains."""
    found = importances(search)
    names = list(found.shares[0])[::-1]
    count = len(found.shares)
    drawn = figure(1.2 + (0.3 + 0.18 * count) * len(names), "Importance of fields (fANOVA)", width=8)
    axes = drawn.subplots()
    width = 0.8 / count
    colours = list(COLOURS.values())
    for index, shares in enumerate(found.shares):
        offset = 0.4 - width * (index + 0.5)
        bars = axes.barh(
            [row + offset for row in range(len(names))], [shares[name] for name in names], width,
            color=colours[index % len(colours)], label=search.objectives[index].title,
        )  # fmt: skip
        axes.bar_label(bars, [f"{shares[name]:.0%}" for name in names], padding=3, fontsize=9)
    axes.set_yticks(range(len(names)), [shortened(name, 40) for name in names])
    axes.set(
        xlabel="share of the variance that the field explains",
        xlim=(0, 1.08 * max(max(s.values()) for s in found.shares)),
    )
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    if count > 1:
        axes.legend(frameon=False, fontsize=9)
    tidy(axes, "x")
    return drawn

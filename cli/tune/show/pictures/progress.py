"""How a search went: the objectives of its trials, their learning curves, and when they used which slot."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from cli.tune.objectives import Objective
from cli.tune.show import configurations
from cli.tune.show.configurations import Configuration
from cli.tune.show.pictures.style import BEST, COLOURS, MOST_LINES, figure, natural, of_most, range_of, tidy, whole
from cli.tune.show.search import Absent, Search

MOST_SLOTS = 64
"""Rows of the timeline."""


def history(search: Search) -> Figure:
    """Draw each objective over the number of the trial, and the best value so far."""
    found = search.configurations
    if not found:
        raise Absent("No trial has begun.")
    objectives = search.objectives
    drawn = figure(0.6 + 3.2 * len(objectives), "Objective of each trial, and the best so far")
    for index, axes in enumerate(drawn.subplots(len(objectives), 1, sharex=True, squeeze=False).flat):
        _history(axes, found, objectives[index], index)
    drawn.axes[-1].set_xlabel("trial")
    whole(drawn.axes[-1].xaxis)
    first, last = found[0].number, found[-1].number
    drawn.axes[-1].set_xlim(first - 0.02 * (last - first) - 0.5, last + 0.02 * (last - first) + 0.5)
    return drawn


def _history(axes: Axes, found: list[Configuration], objective: Objective, index: int) -> None:
    values = {c.number: c.objectives[index] if c.objectives else c.last if index == 0 else None for c in found}
    shown = range_of([value for value in values.values() if value is not None], objective)
    shown.apply(axes)
    for state, marker in (("complete", "o"), ("running", "D"), ("pruned", "v")):
        drawn = [(c.number, value) for c in found if c.state == state and (value := values[c.number]) is not None]
        if drawn:
            numbers, heights = zip(*drawn, strict=True)
            face = COLOURS[state] if state == "complete" else "none"
            axes.plot(
                numbers, shown.clipped(heights), marker, color=COLOURS[state], markerfacecolor=face, markersize=5,
                alpha=0.8, label=state if state == "complete" else f"{state}, at its newest value", clip_on=False,
            )  # fmt: skip
    failed = [c.number for c in found if c.state == "failed"]
    if failed:
        bottom = axes.get_xaxis_transform()
        axes.plot(
            failed, [0.02] * len(failed), "x", color=COLOURS["failed"], markersize=6, transform=bottom, label="failed"
        )
    best = configurations.history(found, objective, index)
    if best:
        numbers, heights = zip(*best, (found[-1].number, best[-1][1]), strict=True)
        axes.step(
            numbers, shown.clipped(heights), where="post", color=BEST, linewidth=1.6, label="best so far", zorder=1
        )
        axes.plot(*best[-1], "*", color=BEST, markersize=13, label=f"best: trial {best[-1][0]}", clip_on=False)
    axes.set_ylabel(objective.title)
    tidy(axes)
    if shown.hides(value for value in values.values() if value is not None):
        axes.plot([], [], linestyle="", label="(at the edge: beyond the axis)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)


def curves(search: Search) -> Figure:
    """Draw the first objective over the evaluations of each configuration, the best one on top."""
    found = [c for c in search.configurations if any(map(math.isfinite, c.curve.values()))]
    if not found:
        raise Absent("No trial has reported an evaluation.")
    objective = search.objectives[0]
    drawn = figure(4.2, f"Learning curves{of_most(found)}: {objective.title} after each evaluation")
    axes = drawn.subplots()
    shown = range_of([value for c in found for value in c.curve.values()], objective)
    shown.apply(axes)
    best = {c.number for c in configurations.best(found, search.objectives)[:1]}
    shown_lines = configurations.ranked(found, search.objectives)[:MOST_LINES]
    alpha = max(0.15, min(0.8, 12 / len(shown_lines)))
    for c in shown_lines:
        if c.number not in best:
            _curve(axes, c, color=COLOURS[c.state], linewidth=1.0, alpha=alpha)
    states = configurations.counts(found)
    handles = [Line2D([], [], color=COLOURS[s], label=f"{s} ({states[s]})") for s in COLOURS if s in states]
    for c in found:
        if c.number in best:
            _curve(axes, c, color=BEST, linewidth=2.4)
            handles.append(Line2D([], [], color=BEST, linewidth=2.4, label=f"best: trial {c.number}"))
    axes.set(xlabel="evaluation", ylabel=objective.title)
    whole(axes.xaxis)
    tidy(axes)
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
    return drawn


def _curve(axes: Axes, configuration: Configuration, **style: float | str) -> None:
    curve = {at: value for at, value in configuration.curve.items() if math.isfinite(value)}
    marker = "o" if len(curve) == 1 else ""
    axes.plot(list(curve), list(curve.values()), marker=marker, markersize=4, **style)  # type: ignore[arg-type]


def timeline(search: Search) -> Figure:
    """Draw when each trial ran on which slots, coloured by the state at its end."""
    runs = [(record, *span) for record in search.records for span in record.spans]
    if not runs:
        raise Absent("No run has ended.")
    slots = sorted({slot for _, _, _, names in runs for slot in names}, key=natural)[:MOST_SLOTS]
    begin, end = min(start for _, start, _, _ in runs), max(stop for _, _, stop, _ in runs)
    unit, name = _unit(end - begin)
    use = configurations.slot_use(search.records)
    used = "" if use is None else f": {use.share:.0%} used"
    drawn = figure(1.3 + 0.34 * len(slots), f"Slots over time{used}")
    axes = drawn.subplots()
    rows = {slot: row for row, slot in enumerate(slots)}
    bars: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for record, start, stop, names in runs:
        left, width = (start - begin) / unit, (stop - start) / unit
        for slot in rows.keys() & names:
            bars.setdefault((slot, record.state), []).append((left, width))
            if width > (end - begin) / unit / 45:
                axes.text(
                    left + width / 2,
                    rows[slot],
                    f"{record.number}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white",
                )
    for (slot, state), places in bars.items():
        axes.broken_barh(places, (rows[slot] - 0.39, 0.78), color=COLOURS[state], edgecolor="white", linewidth=0.6)
    states = [state for state in COLOURS if any(record.state == state for record, *_ in runs)]
    axes.legend(
        handles=[Patch(color=COLOURS[state], label=state) for state in states],
        loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9,
    )  # fmt: skip
    axes.set(xlabel=f"{name} since the start", xlim=(0, (end - begin) / unit or 1), ylim=(len(slots) - 0.4, -0.6))
    axes.set_yticks(range(len(slots)), slots, fontsize=9)
    tidy(axes, "x")
    return drawn


def _unit(seconds: float) -> tuple[float, str]:
    return (3600, "hours") if seconds > 7200 else (60, "minutes") if seconds > 180 else (1, "seconds")

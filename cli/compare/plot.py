"""One picture of a metric over seconds, bytes and steps, with a line for each strategy.

Several seeds of a strategy are a line, their mean, and a band from the lowest to the highest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from cli.compare.curves import curve
from cli.compare.outcome import LOSS, Outcome, strategies

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of Okabe and Ito, which colour-blind readers can distinguish, without yellow,
which is faint on white."""
DASHES = ("-", "--", ":")
MARKERS = "osD^vPX"
BAND = "lines: mean of the seeds; bands: lowest to highest"
LEGEND, LINE = 190, 9
"""Width of the legend, and of the line sample before a label, in characters."""


def picture(outcomes: Sequence[Outcome], metric: str, title: str, goal: float | None) -> Figure:
    """Draw three panels that share the axis of the metric.

    `goal` is a horizontal line in each panel.
    """
    drawn = [o for o in outcomes if any(metric in e for e in o.evaluations)]
    groups = [group for group in strategies(outcomes) if any(o in drawn for o in group)]
    labels = [_label(group) for group in groups]
    acts = any("env_steps" in e for o in drawn for e in o.evaluations)
    columns = max((n for n in range(1, 5) if _width(labels, n) <= LEGEND), default=1)
    figure = Figure(figsize=(13, 4.4 + 0.2 * -(-len(labels) // columns)), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False)
    panels = {
        "seconds": "seconds of training",
        "bytes_sent": "MB sent by all ranks",
        **({"env_steps": "environment steps of all ranks"} if acts else {"step": "steps"}),
    }
    for axes, (key, label) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        _panel(axes, groups, labels, key, metric)
        axes.set_xlabel(label)
        if goal is not None:
            axes.axhline(goal, color="#777777", linewidth=0.9, linestyle=":", zorder=1)
    first, second, third = figure.axes
    third.xaxis.set_major_locator(MaxNLocator(5))
    third.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
    first.set_ylabel(f"held-out {metric}", parse_math=False)
    first.set_ylim(*_limits(drawn, metric, goal))
    if any(_megabytes(e) > 0 for o in drawn for e in o.evaluations):
        second.set_xscale("log")
        low, high = second.get_xlim()
        second.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        second.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
        second.xaxis.set_minor_formatter(NullFormatter())
    legend = figure.legend(
        *first.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False, fontsize=9,
        title=BAND if any(len(group) > 1 for group in groups) else None, title_fontsize=9,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _width(labels: Sequence[str], columns: int) -> int:
    """Return the width in characters of a legend that fills `columns` columns in order."""
    ends = [i * (len(labels) // columns) + min(i, len(labels) % columns) for i in range(columns + 1)]
    return sum(LINE + max(map(len, labels[a:b]), default=0) for a, b in pairwise(ends))


def _label(outcomes: Sequence[Outcome]) -> str:
    """Return the name of a strategy, and whether runs of it failed."""
    failed = sum(bool(o.failure) for o in outcomes)
    part = f"{failed} of {len(outcomes)} " * (len(outcomes) > 1)
    return outcomes[0].strategy + f" ({part}failed)" * bool(failed)


def _panel(axes: Axes, groups: Sequence[Sequence[Outcome]], labels: Sequence[str], key: str, metric: str) -> None:
    for number, (group, label) in enumerate(zip(groups, labels, strict=True)):
        found = curve([_points(o, key, metric) for o in [o for o in group if not o.failure] or group])
        style = _style(number, len(found.x))
        axes.plot(found.x, found.mean, label=label, **style)
        if len(group) > 1:
            axes.fill_between(found.x, found.low, found.high, color=style["color"], alpha=0.15, linewidth=0)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _points(outcome: Outcome, key: str, metric: str) -> list[tuple[float, float]]:
    measured = [e for e in outcome.evaluations if metric in e and (key != "bytes_sent" or _megabytes(e) > 0)]
    return [(_megabytes(e) if key == "bytes_sent" else e[key], e[metric]) for e in measured]


def _style(number: int, points: int) -> dict[str, Any]:
    """Return a style that differs from all others in colour, dash or marker."""
    turn = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[turn % len(DASHES)],
        "linewidth": 1.5,
        "marker": MARKERS[(number + turn) % len(MARKERS)],
        "markersize": 4,
        "markevery": max(1, points // 12),
    }


def _limits(outcomes: Sequence[Outcome], metric: str, goal: float | None) -> tuple[float, float]:
    """Return the limits of the metric's axis.

    The first fifth of each line is left out, so that the ends are distinct.
    """
    shown = [e[metric] for o in outcomes for e in o.evaluations[len(o.evaluations) // 5 :] if metric in e]
    shown += [] if goal is None else [goal]
    if not shown:
        return 0.0, 1.0
    low, high = min(shown), max(shown)
    margin = 0.06 * (high - low or abs(high) or 1.0)
    return (max(0.0, low - margin) if metric == LOSS else low - margin), high + margin


def _megabytes(evaluation: dict[str, Any]) -> float:
    return float(evaluation["bytes_sent"]) / 1e6

"""What the pictures of a search have in common: colours, limits of axes, and short labels."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from cli.tune.objectives import Objective
from cli.tune.show.words import shortened

WIDTH = 11
"""Inches of a picture."""
COLOURS = {
    "complete": "#0072B2",
    "running": "#009E73",
    "pruned": "#E69F00",
    "failed": "#D55E00",
    "waiting": "#999999",
}
"""Of states, from the colours of Okabe and Ito, which colour-blind readers can distinguish."""
BEST = "#C2185B"
SHADES = LinearSegmentedColormap.from_list("shades", colormaps["viridis_r"](np.linspace(0.15, 1, 256)))
"""Late trials, or good ones, are dark. The yellow end is left out because it is faint on white."""
MOST_LINES = 500
"""Configurations that are drawn as lines, the best ones."""
FEW = 8
"""Values below which none is an outlier."""


def figure(height: float, title: str, width: float = WIDTH) -> Figure:
    drawn = Figure(figsize=(width, height), dpi=110, layout="constrained")
    drawn.suptitle(title, fontsize=11)
    return drawn


def of_most(found: Sequence[object]) -> str:
    """Return what a title says about lines that are left out."""
    return f" (the best {MOST_LINES} of {len(found):,})" if len(found) > MOST_LINES else ""


def tidy(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    axes.grid(axis=grid, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def whole(axis: Axis) -> None:
    """Mark whole numbers."""
    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def logarithmic(axis: Axis, low: float, high: float, most: int = 6) -> None:
    """Mark about `most` decades, or also 2 and 5 times them if there are few, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=most))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


@dataclass(frozen=True)
class Range:
    """The part of an axis that has all values of an objective except bad outliers, and a margin."""

    low: float
    high: float
    margin: float = 0.0
    log: bool = False

    def clipped(self, values: Sequence[float]) -> list[float]:
        """Return the values; those beyond the axis are near its edge, NaN stays."""
        edge = 0.3 * self.margin
        return [float(value) for value in np.clip(values, self.low + edge, self.high - edge)]

    def hides(self, values: Iterable[float]) -> bool:
        """Return True if a value is beyond the axis."""
        return any(not self.low <= value <= self.high for value in values)

    def apply(self, axes: Axes, along: Literal["x", "y"] = "y") -> None:
        axes.set(**{f"{along}scale": "log" if self.log else "linear", f"{along}lim": (self.low, self.high)})
        if self.log:
            logarithmic(axes.yaxis if along == "y" else axes.xaxis, self.low, self.high)


def range_of(values: Iterable[float], objective: Objective) -> Range:
    """Return the range of `values`, of which those that are not finite do not count.

    It is logarithmic if a minimised objective is positive and spans two decades. Otherwise bad
    values further than three interquartile ranges from the quartiles are beyond it.
    """
    known = sorted(value for value in values if math.isfinite(value))
    if not known:
        return Range(0, 1)
    low, high = known[0], known[-1]
    if objective.mode == "min" and low > 0 and high >= 100 * low:
        margin = (high / low) ** 0.05
        return Range(low / margin, high * margin, log=True)
    if len(known) >= FEW:
        first, third = np.quantile(known, (0.25, 0.75))
        reach = 3 * (third - first)
        if objective.mode == "min":
            high = max(value for value in known if value <= third + reach)
        else:
            low = min(value for value in known if value >= first - reach)
    margin = 0.08 * (high - low or abs(high) or 1.0)
    return Range(low - margin, high + margin, margin)


def labels(values: Sequence[Any], most: int) -> list[str]:
    """Return a text of at most `most` characters for each value, all of them different.

    Texts that begin alike are shortened in the middle; if they also end alike, they get a number.
    """
    whole = [shortened(value, 10_000) for value in values]
    texts = [text if len(text) <= most else f"{text[: most - 3]}..." for text in whole]
    if len(set(texts)) < len(texts):
        half = (most - 3) // 2
        texts = [text if len(text) <= most else f"{text[:half]}...{text[-half:]}" for text in whole]
    twice = Counter(texts)
    return [f"{text[: most - 4]} #{i}" if twice[text] > 1 else text for i, text in enumerate(texts, 1)]


def jitter(count: int, width: float) -> list[float]:
    """Return offsets between -width and width, the same at each call, that spread points of a choice."""
    golden = 0.6180339887498949
    return [width * (2 * ((i * golden) % 1) - 1) for i in range(count)]


def natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key under which h10:0 comes after h9:0, and [128] after [64]."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]

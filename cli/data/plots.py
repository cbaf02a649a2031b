"""Who has which samples, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from cli.data.tables import NO_CLASS, Histogram, classes

Colour = tuple[float, float, float]

# Ten colours that are told apart with any colour vision (Petroff, arXiv 2107.02270).
APART = [
    *map(to_rgb, ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"]),
    *map(to_rgb, ["#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"]),
]
BAR = 0.86
MOST_LABELLED = 24
"""Workers whose bars have room for text."""


def shares(title: str, histograms: Sequence[Histogram]) -> Figure:
    """A bar for each worker, its classes one above the other."""
    width = min(18.0, 3.5 + max(5.0, 0.45 * len(histograms)))
    figure = Figure(figsize=(width, 6.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, parse_math=False)
    colours = _colours(classes(histograms))
    tallest = max(max(sum(h.values()) for h in histograms), 1)
    _bars(axes, histograms, colours)
    if len(histograms) <= MOST_LABELLED:
        _label(axes, histograms, colours, tallest)
    axes.set(xlabel="worker", ylabel="samples", xlim=(-0.6, len(histograms) - 0.4), ylim=(0, 1.06 * tallest))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=33, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    _key(figure, axes, colours)
    return figure


def _colours(known: Sequence[int]) -> dict[int, Colour]:
    """Of few classes such as are easily told apart, of many such as show their order."""
    if len(known) <= len(APART):
        return {NO_CLASS: APART[0], **dict(zip(known, APART, strict=False))}
    low, high = known[0], known[-1]
    ramp = colormaps["viridis"]
    return {NO_CLASS: APART[3], **{c: to_rgb(ramp((c - low) / (high - low))) for c in known}}


def _segments(histogram: Histogram) -> list[tuple[int, float, float]]:
    """Class, lower and upper end of each part of a bar."""
    kinds = sorted(histogram)
    ends = list(accumulate(histogram[c] for c in kinds))
    return [(c, end - histogram[c], end) for c, end in zip(kinds, ends, strict=True)]


def _bars(axes: Axes, histograms: Sequence[Histogram], colours: dict[int, Colour]) -> None:
    parts = [(x, *segment) for x, histogram in enumerate(histograms) for segment in _segments(histogram)]
    corners = [
        [(x - BAR / 2, low), (x + BAR / 2, low), (x + BAR / 2, high), (x - BAR / 2, high)] for x, _, low, high in parts
    ]
    lines = 0.5 if len(colours) <= 40 else 0
    axes.add_collection(
        PolyCollection(corners, facecolors=[colours[c] for _, c, _, _ in parts], edgecolors="white", linewidths=lines)
    )


def _label(axes: Axes, histograms: Sequence[Histogram], colours: dict[int, Colour], tallest: int) -> None:
    """The class in each part that has room for it, so that nobody depends on colours, and the samples above each bar."""
    for x, histogram in enumerate(histograms):
        total = sum(histogram.values())
        axes.annotate(
            f"{total:,}", (x, total), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8
        )
        for kind, low, high in _segments(histogram):
            if kind != NO_CLASS and high - low > 0.03 * tallest:
                ink = "black" if _luminance(colours[kind]) > 0.35 else "white"
                axes.text(x, (low + high) / 2, str(kind), ha="center", va="center", fontsize=8, color=ink)


def _luminance(colour: Colour) -> float:
    return float(sum(weight * part**2.2 for weight, part in zip((0.2126, 0.7152, 0.0722), colour, strict=True)))


def _key(figure: Figure, axes: Axes, colours: dict[int, Colour]) -> None:
    """Which colour is which class, in the order of the bars."""
    known = [c for c in colours if c != NO_CLASS]
    if len(known) > len(APART):
        scale = ScalarMappable(Normalize(known[0], known[-1]), colormaps["viridis"])
        figure.colorbar(scale, ax=axes, label="class", pad=0.01, ticks=MaxNLocator(integer=True))
    elif known:
        patches = [Patch(color=colours[c], label=str(c)) for c in reversed(known)]
        axes.legend(handles=patches, title="class", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)

"""Draw the samples and classes of each worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import FigureBase
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from cli.data.tables import NO_CLASS, Histogram, Names, class_name, classes

Colour = tuple[float, float, float]

DISTINCT = [
    *map(to_rgb, ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"]),
    *map(to_rgb, ["#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"]),
]
"""Ten colours that are distinct with any colour vision (Petroff, arXiv 2107.02270)."""

BAR = 0.86
MOST_NAMED = 60
MOST_LABELLED = 24
"""Largest number of workers whose bars have room for labels."""


def draw(figure: FigureBase, histograms: Sequence[Histogram], names: Names) -> None:
    """Draw one bar per worker, with its classes stacked."""
    axes = figure.subplots()
    colours = _colours(classes(histograms))
    tallest = max(max(sum(h.values()) for h in histograms), 1)
    _bars(axes, histograms, colours)
    if len(histograms) <= MOST_LABELLED:
        _label(axes, histograms, colours, tallest, names)
    axes.set_title("Samples and classes of each worker in the first epoch")
    axes.set(xlabel="worker", ylabel="samples", xlim=(-0.6, len(histograms) - 0.4), ylim=(0, 1.08 * tallest))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=33, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    _key(figure, axes, colours, names)


def balance(figure: FigureBase, histograms: Sequence[Histogram], names: Names) -> None:
    """Draw the samples of each class: in class order if names fit, else the most frequent first."""
    total = sum((Counter(h) for h in histograms), Counter[int]())
    known = classes(histograms)
    axes = figure.subplots()
    axes.set_title("Samples of each class")
    if len(known) <= MOST_NAMED:
        axes.bar(range(len(known)), [total[c] for c in known], 0.8, color=DISTINCT[0])
        axes.set_xticks(
            range(len(known)), [class_name(c, names) for c in known], rotation=90, fontsize=8, parse_math=False
        )
    else:
        axes.stairs(sorted(total.values(), reverse=True), fill=True, color=DISTINCT[0])
        axes.set_xlabel("classes, the most frequent first")
    axes.set(ylabel="samples")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)


def _colours(known: Sequence[int]) -> dict[int, Colour]:
    """Return a colour per class: distinct colours for few classes, a ramp in class order for many."""
    if len(known) <= len(DISTINCT):
        return {NO_CLASS: DISTINCT[0], **dict(zip(known, DISTINCT, strict=False))}
    low, high = known[0], known[-1]
    ramp = colormaps["viridis"]
    return {NO_CLASS: DISTINCT[3], **{c: to_rgb(ramp((c - low) / (high - low))) for c in known}}


def _segments(histogram: Histogram) -> list[tuple[int, float, float]]:
    """Return the class and the lower and upper end of each segment of a bar."""
    kinds = sorted(histogram)
    ends = list(accumulate(histogram[c] for c in kinds))
    return [(c, end - histogram[c], end) for c, end in zip(kinds, ends, strict=True)]


def _bars(axes: Axes, histograms: Sequence[Histogram], colours: dict[int, Colour]) -> None:
    segments = [(x, *segment) for x, histogram in enumerate(histograms) for segment in _segments(histogram)]
    corners = [
        [(x - BAR / 2, low), (x + BAR / 2, low), (x + BAR / 2, high), (x - BAR / 2, high)]
        for x, _, low, high in segments
    ]
    lines = 0.5 if len(colours) <= 40 else 0
    axes.add_collection(
        PolyCollection(
            corners, facecolors=[colours[c] for _, c, _, _ in segments], edgecolors="white", linewidths=lines
        )
    )


def _label(axes: Axes, histograms: Sequence[Histogram], colours: dict[int, Colour], tallest: int, names: Names) -> None:
    """Write the class into each segment that has room, and the number of samples above each bar."""
    for x, histogram in enumerate(histograms):
        total = sum(histogram.values())
        axes.annotate(
            f"{total:,}", (x, total), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8
        )
        for kind, low, high in _segments(histogram):
            if kind != NO_CLASS and high - low > 0.03 * tallest:
                ink = "black" if _luminance(colours[kind]) > 0.35 else "white"
                axes.text(
                    x,
                    (low + high) / 2,
                    class_name(kind, names),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=ink,
                    parse_math=False,
                )


def _luminance(colour: Colour) -> float:
    return float(sum(weight * part**2.2 for weight, part in zip((0.2126, 0.7152, 0.0722), colour, strict=True)))


def _key(figure: FigureBase, axes: Axes, colours: dict[int, Colour], names: Names) -> None:
    """Draw the legend of colours and classes, in the order of the bars."""
    known = [c for c in colours if c != NO_CLASS]
    if len(known) > len(DISTINCT):
        scale = ScalarMappable(Normalize(known[0], known[-1]), colormaps["viridis"])
        figure.colorbar(scale, ax=axes, label="class", pad=0.01, ticks=MaxNLocator(integer=True))
    elif known:
        patches = [Patch(color=colours[c], label=class_name(c, names)) for c in reversed(known)]
        axes.legend(handles=patches, title="class", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)

"""Draw samples: images, maps and curves in a grid, and histograms of columns and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import EngFormatter, MaxNLocator

BLUE, ORANGE = "#3f90da", "#e76300"
COLUMNS = 8
"""Drawn samples or histograms in a row."""
LONGEST = 20
"""Characters of a title."""


def grid_rows(entries: int, columns: int = COLUMNS) -> int:
    """Return the rows of a grid."""
    return -(-entries // columns)


def grid(
    figure: FigureBase,
    drawing: Mapping[str, Any],
    titles: Sequence[str],
    which: str = "samples at random positions",
    columns: int = COLUMNS,
) -> None:
    """Draw a field of several samples, each below its title."""
    figure.suptitle(f"{drawing['name']} of {which}", fontsize=11, parse_math=False)
    draw = {"image": _image, "map": _map, "curve": _curve}[drawing["kind"]]
    for axes, values, title in zip(_axes(figure, len(titles), columns), drawing["values"], titles, strict=False):
        draw(axes, values)
        axes.set_title(title, fontsize=9, parse_math=False)
        axes.set(xticks=[], yticks=[])


def histograms(figure: FigureBase, title: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Draw a histogram or the categories of each entry, with its share of missing values."""
    figure.suptitle(title, fontsize=11, parse_math=False)
    for axes, entry in zip(_axes(figure, len(entries)), entries, strict=False):
        missing = entry.get("missing", 0)
        axes.set_title(_short(entry["name"], LONGEST), fontsize=9, parse_math=False)
        if missing:
            axes.set_xlabel(f"{missing:.1%} missing", fontsize=8, color=ORANGE)
        if "categories" in entry:
            _categories(axes, entry["categories"])
        elif "histogram" in entry:
            _bins(axes, **entry["histogram"])
        axes.tick_params(labelsize=7, length=2)
        axes.spines[["top", "right"]].set_visible(False)


def rates(figure: FigureBase, found: Sequence[Mapping[str, float]]) -> None:
    """Draw samples per second over the number of loading workers."""
    axes, empty = figure.subplots(1, 2)
    empty.set_axis_off()
    axes.set_title("Delivered by the source on this machine", fontsize=11)
    bars = axes.bar([f"{r['workers']}" for r in found], [r["samples_per_second"] for r in found], 0.6, color=BLUE)
    axes.bar_label(bars, [f"{r['bytes_per_second'] / 1e6:,.1f} MB/s" for r in found], padding=2, fontsize=8)
    axes.set(xlabel="loading workers", ylabel="samples / s", xlim=(-0.7, max(3, len(found)) - 0.3))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def _axes(figure: FigureBase, entries: int, columns: int = COLUMNS) -> list[Axes]:
    """Return the axes of a grid of `entries`; cells without an entry are empty."""
    cells = list(figure.subplots(grid_rows(entries, columns), columns, squeeze=False).flat)
    for empty in cells[entries:]:
        empty.set_axis_off()
    return cells[:entries]


def _image(axes: Axes, values: Any) -> None:
    axes.imshow(values, cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def _map(axes: Axes, values: Any) -> None:
    wide = max(len(values[0]) / len(values), len(values) / len(values[0])) > 2
    axes.imshow(values, cmap="viridis", interpolation="nearest", origin="lower", aspect="auto" if wide else "equal")


def _curve(axes: Axes, values: Any) -> None:
    low, high = values
    axes.fill_between(range(len(low)), low, high, color=BLUE, linewidth=0.6)
    axes.margins(x=0)


def _bins(axes: Axes, edges: Sequence[float], counts: Sequence[float]) -> None:
    axes.stairs(counts, edges, fill=True, color=BLUE)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3))


def _categories(axes: Axes, counts: Mapping[str, int]) -> None:
    axes.barh(range(len(counts)), list(counts.values()), color=BLUE)
    axes.set_yticks(range(len(counts)), [_short(name, 10) for name in counts], parse_math=False)
    axes.set_xticks([])
    axes.invert_yaxis()


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."

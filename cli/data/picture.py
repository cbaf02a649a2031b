"""One picture of a survey (`hvd_train/data/survey`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.figure import Figure, FigureBase
from matplotlib.layout_engine import ConstrainedLayoutEngine

from cli.data import shares, tables
from cli.output import drawings

WIDTH = 13
ROW = 1.9
"""Inches of a row of samples or histograms."""


@dataclass(frozen=True)
class Panel:
    """A part of the picture over its whole width."""

    height: float
    draw: Callable[[FigureBase], None]


def picture(title: str, survey: Mapping[str, Any]) -> Figure:
    """Draw workers and classes, samples, columns, lengths of sequences, and rates, as far as there are any."""
    panels = list(_panels(survey))
    heights = [panel.height for panel in panels]
    figure = Figure(figsize=(WIDTH, 0.5 + sum(heights)), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    figure.suptitle(title, parse_math=False)
    for part, panel in zip(
        figure.subfigures(len(panels), 1, squeeze=False, height_ratios=heights).flat, panels, strict=True
    ):
        panel.draw(part)
    return figure


def _panels(survey: Mapping[str, Any]) -> Iterator[Panel]:
    if survey["shares"] is not None:
        divided = tables.histograms(survey)
        yield Panel(5, partial(shares.draw, histograms=divided, names=survey["classes"]))
        if len(tables.classes(divided)) > len(shares.DISTINCT):
            yield Panel(3, partial(shares.balance, histograms=divided, names=survey["classes"]))
    for drawing in survey["drawings"]:
        rows = drawings.grid_rows(len(drawing["values"]))
        yield Panel(0.4 + ROW * rows, partial(drawings.grid, drawing=drawing, titles=survey["titles"]))
    lengths = [{"name": f["name"], "histogram": f["lengths"]} for f in survey["fields"] if "lengths" in f]
    read = f"{survey['read']:,} samples"
    for title, entries in ((f"Columns, of {read}", survey["columns"]), (f"Lengths, of {read}", lengths)):
        if entries:
            height = 0.4 + ROW * drawings.grid_rows(len(entries))
            yield Panel(height, partial(drawings.histograms, title=title, entries=entries))
    if survey["rates"]:
        yield Panel(3, partial(drawings.rates, found=survey["rates"]))

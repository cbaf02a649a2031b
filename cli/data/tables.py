"""Who has which samples, for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

NO_CLASS = -1
MOST_COLUMNS = 12
MOST_FREQUENT = 5

Histogram = dict[int, int]
"""Samples of each class."""


def classes(histograms: Sequence[Histogram]) -> list[int]:
    """The classes that some worker has samples of, in order."""
    return sorted({c for histogram in histograms for c in histogram} - {NO_CLASS})


def shares(histograms: Sequence[Histogram]) -> Table:
    """A row for each worker and one for all; of more classes than fit, the most frequent."""
    known = classes(histograms)
    few = len(known) <= MOST_COLUMNS
    table = Table()
    for name in ("worker", "samples", "share", *(map(str, known) if few else ("classes", "most frequent: samples"))):
        table.add_column(name, justify="right", no_wrap=name != "most frequent: samples")
    total = sum((Counter(h) for h in histograms), Counter[int]())
    for name, histogram in [*((str(worker), h) for worker, h in enumerate(histograms)), ("all", total)]:
        counts = [f"{histogram.get(c, 0):,}" for c in known] if few else _summary(histogram)
        samples = sum(histogram.values())
        table.add_row(name, f"{samples:,}", f"{samples / max(1, total.total()):.1%}", *counts)
    table.rows[-2].end_section = True
    return table


def _summary(histogram: Histogram) -> list[str]:
    most = Counter(histogram).most_common(MOST_FREQUENT)
    return [str(len(histogram)), ", ".join(f"{c}: {n:,}" for c, n in most)]

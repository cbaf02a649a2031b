"""Tables of a survey (`hvd_train/data/survey`) for the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from hvd_train.text.names import printable

NO_CLASS = -1
MOST_COLUMNS = 12
MOST_FREQUENT = 5

Histogram = dict[int, int]
"""The number of samples of each class."""
Names = Sequence[str] | None
"""The names of the classes in order, if the source knows them."""


def histograms(survey: Mapping[str, Any]) -> list[Histogram]:
    """Return the classes of each worker. JSON has the classes as texts."""
    return [{int(kind): n for kind, n in one.items()} for one in survey["shares"]]


def classes(histograms: Sequence[Histogram]) -> list[int]:
    """Return the classes that any worker has samples of, sorted."""
    return sorted({c for histogram in histograms for c in histogram} - {NO_CLASS})


def class_name(kind: int, names: Names) -> str:
    """Return the name of a class, at most 16 characters long; its number without names."""
    return printable(names[kind])[:16] if names and 0 <= kind < len(names) else str(kind)


def shares(histograms: Sequence[Histogram], names: Names = None) -> Table:
    """Return one row per worker and one for all workers.

    If there are too many classes, it shows the most frequent.
    """
    known = classes(histograms)
    few = len(known) <= MOST_COLUMNS
    table = Table()
    for name in (
        "worker",
        "samples",
        "share",
        *([class_name(c, names) for c in known] if few else ("classes", "most frequent: samples")),
    ):
        table.add_column(name, justify="right", no_wrap=name != "most frequent: samples")
    total = sum((Counter(h) for h in histograms), Counter[int]())
    for name, histogram in [*((str(worker), h) for worker, h in enumerate(histograms)), ("all", total)]:
        counts = [f"{histogram.get(c, 0):,}" for c in known] if few else _summary(histogram, names)
        samples = sum(histogram.values())
        table.add_row(name, f"{samples:,}", f"{samples / max(1, total.total()):.1%}", *counts)
    table.rows[-2].end_section = True
    return table


def _summary(histogram: Histogram, names: Names) -> list[str]:
    most = Counter(histogram).most_common(MOST_FREQUENT)
    return [str(len(histogram)), ", ".join(f"{class_name(c, names)}: {n:,}" for c, n in most)]


def environment(found: Mapping[str, Any]) -> Table:
    """Return what an agent perceives, what it may do, and the return of a random policy."""
    table, played = Table(show_header=False), found["random"]
    rows = {
        "environment": printable(found["name"]),
        "observation": " x ".join(map(str, found["observation"])),
        "actions": printable(found["actions"]),
        "agents": str(found["agents"]),
        "longest episode": f"{found['most_steps']:,} steps",
        "success from": "" if found["threshold"] is None else f"a return of {found['threshold']:g}",
        "an epoch": f"{found['copies']} copies of {found['steps']} steps on each worker",
        "random policy": f"return {played['return']:.4g} ({played['return_min']:.4g} to {played['return_max']:.4g}), "
        f"{played['episode_length']:.4g} steps, in {played['episodes']} episodes",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def fields(found: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row for each field of a sample, or each column of a table."""
    table = Table("field", "type", "shape", "lowest", "highest", "mean", "deviation", "missing")
    for field in found:
        numbers = [_number(field[key]) if key in field else "" for key in ("low", "high", "mean", "deviation")]
        missing = f"{field['missing']:.1%}" if "missing" in field else ""
        table.add_row(printable(field["name"]), *_kind(field), *numbers, missing)
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e12 else f"{value:.4g}"


def _kind(field: Mapping[str, Any]) -> tuple[str, str]:
    """Return the type and the shape of a field. A range stands for lengths that differ."""
    if "categories" in field:
        return f"text, {len(field['categories'])} kinds", ""
    edges = field.get("lengths", {}).get("edges", [0, 0])
    lengths = f"{math.ceil(edges[0])} to {math.floor(edges[-1])}"
    return field.get("type", "number"), " x ".join(lengths if n is None else str(n) for n in field.get("shape", []))


def rates(found: Sequence[Mapping[str, float]]) -> Table:
    """Return one row for each number of loading workers."""
    table = Table()
    for name in ("loading workers", "samples/s", "MB/s"):
        table.add_column(name, justify="right")
    for rate in found:
        table.add_row(
            str(rate["workers"]), f"{rate['samples_per_second']:,.0f}", f"{rate['bytes_per_second'] / 1e6:,.1f}"
        )
    return table

"""Tables of measured figures for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from cli.bench.figures import Case, Result, duration, mean_ratio, median_ratio, size, variants

Variant = dict[str, Any]


def allreduce(found: Result) -> Table:
    (run,) = found["runs"]
    names = variants(run)
    table = _table(f"All-reduce of float32, np={run['world_size']}: median times", ["size", *names, "ddl sends"])
    for case in run["cases"]:
        times = [_cell(case, name, _time) for name in names]
        table.add_row(size(int(case["case"])), *times, _sent(case))
    return table


def step(found: Result) -> Table:
    """Return the times of the floor and the ratios of the other variants to it."""
    (run,) = found["runs"]
    names = sorted(variants(run), key=lambda name: name != "local")
    title = f"Training step, np={run['world_size']}: median time of the floor, and median ratio to it"
    table = _table(title, ["workload", *names, "ddl sends"])
    for case in run["cases"]:
        cells = [_cell(case, name, _time if name == "local" else _over_floor) for name in names]
        table.add_row(case["case"], *cells, _sent(case))
    means = [mean_ratio(run["cases"], name, "local") for name in names]
    table.add_section()
    table.add_row("geometric mean", *("" if mean is None else f"{mean:.3f}" for mean in means))
    return table


def calls(found: Result) -> Table:
    """Return the times of each implementation of Horovod's API, and the ratio of ddl's to
    Horovod's.
    """
    (run,) = found["runs"]
    names = variants(run)
    title = f"Named all-reduces of 1 KiB in flight together, np={run['world_size']}: median times"
    table = _table(title, ["calls", *names, "ddl_torch over horovod"])
    for case in run["cases"]:
        ratio = median_ratio(case, "ddl_torch", "horovod")
        times = [_cell(case, name, _time) for name in names]
        table.add_row(case["case"], *times, "" if ratio is None else f"{ratio:.3f}")
    return table


def scaling(found: Result) -> Table:
    table = _table("Training on more ranks", ["workload", "variant", "np", "samples per second", "efficiency"])
    for line in found["scaling"]:
        for point in line["points"]:
            rate, efficiency = f"{point['samples_per_second']:,.0f}", f"{point['efficiency']:.2f}"
            table.add_row(line["case"], line["variant"], str(point["world_size"]), rate, efficiency)
        table.add_section()
    return table


def goals(found: Iterable[dict[str, Any]]) -> Table:
    table = _table("Goals", ["figure", "goal", "measured", "met"])
    for goal in found:
        limit, measured = f"{goal['sense']} {goal['limit']:.4g}", f"{goal['measured']:.4g}"
        table.add_row(goal["figure"], limit, measured, _met(goal["met"]))
    return table


def _met(met: bool) -> Text:
    return Text("yes", style="green") if met else Text("no", style="red")


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _cell(case: Case, name: str, text: Callable[[Variant], str]) -> str:
    return text(case["variants"][name]) if name in case["variants"] else ""


def _time(variant: Variant) -> str:
    return duration(variant["seconds"]["median"])


def _over_floor(variant: Variant) -> str:
    return f"{variant['over_floor']['median']:.3f}"


def _sent(case: Case) -> str:
    """Return the bytes that a rank sends per iteration, one size for each different engine."""
    counted = sorted({v["bytes_sent"] for v in case["variants"].values() if v["bytes_sent"] is not None})
    return ", ".join(dict.fromkeys(map(size, counted)))

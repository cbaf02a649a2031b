"""Pictures of measured figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cli.bench.figures import Result, size, variants

RATIOS = (0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5, 7, 10, 15, 20)


def allreduce(found: Result) -> Figure:
    """Plot bandwidth over size on logarithmic axes, with the quartiles as a band."""
    (run,) = found["runs"]
    figure, axes = _figure(f"All-reduce of float32 in place, np={run['world_size']}: medians and quartiles")
    names = variants(run)
    for name in names:
        cases = [case for case in run["cases"] if name in case["variants"]]
        sizes = [int(case["case"]) for case in cases]
        seconds = [case["variants"][name]["seconds"] for case in cases]
        rate = {
            key: [n / s[key] / 1e9 for n, s in zip(sizes, seconds, strict=True)] for key in ("lower", "median", "upper")
        }
        (line,) = axes.plot(sizes, rate["median"], marker="o", markersize=4, **_style(names, name))
        axes.fill_between(sizes, rate["lower"], rate["upper"], color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel="size of the tensor", ylabel="size / time  [GB/s]")
    axes.set_xticks([int(case["case"]) for case in run["cases"]], [size(int(case["case"])) for case in run["cases"]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend()
    return figure


def step(found: Result) -> Figure:
    """Plot the ratio to the floor as bars that start at 1 on a logarithmic axis."""
    (run,) = found["runs"]
    figure, axes = _figure(f"Training step, np={run['world_size']}: medians and quartiles")
    names = [name for name in variants(run) if name != "local"]
    width = 0.85 / max(1, len(names))
    for number, name in enumerate(names):
        cases = [
            (i, case["variants"][name]["over_floor"]) for i, case in enumerate(run["cases"]) if name in case["variants"]
        ]
        places = [i + (number - (len(names) - 1) / 2) * width for i, _ in cases]
        _bars(axes, places, [found for _, found in cases], width, **_style(names, name))
    axes.axhline(1, color="black", linewidth=1, label="local")
    axes.set(yscale="log", ylabel="time / time without communication")
    axes.set_xticks(range(len(run["cases"])), [case["case"].replace(" ", "\n") for case in run["cases"]])
    axes.yaxis.set_major_locator(FixedLocator(RATIOS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.12)
    axes.legend(ncols=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    return figure


def calls(found: Result) -> Figure:
    """Plot times as bars with the quartiles as error bars."""
    (run,) = found["runs"]
    figure, axes = _figure(
        f"Named all-reduces of 1 KiB in flight together, np={run['world_size']}: medians and quartiles"
    )
    names = variants(run)
    width = 0.85 / max(1, len(names))
    for number, name in enumerate(names):
        cases = [(i, c["variants"][name]["seconds"]) for i, c in enumerate(run["cases"]) if name in c["variants"]]
        places = [i + (number - (len(names) - 1) / 2) * width for i, _ in cases]
        medians = [1e3 * s["median"] for _, s in cases]
        errors = [[1e3 * abs(s[key] - s["median"]) for _, s in cases] for key in ("lower", "upper")]
        bars = axes.bar(places, medians, width, yerr=errors, **_style(names, name))
        axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlabel="calls", ylabel="time  [ms]")
    axes.set_xticks(range(len(run["cases"])), [case["case"] for case in run["cases"]])
    axes.legend()
    return figure


def scaling(found: Result) -> Figure:
    """Plot the speed-up of each workload and variant over the number of ranks."""
    lines = found["scaling"]
    figure, axes = _figure("Training on more ranks, the same batch per rank: speed-up over the first run")
    ranks = sorted({point["world_size"] for line in lines for point in line["points"]})
    several = len({line["case"] for line in lines}) > 1
    axes.plot(ranks, [n / ranks[0] for n in ranks], "--", color="grey", label="ideal")
    for line in lines:
        x, y = zip(*((point["world_size"], point["speedup"]) for point in line["points"]), strict=True)
        axes.plot(x, y, marker="o", label=f"{line['variant']}, {line['case']}" if several else line["variant"])
    axes.set(xlabel="ranks", ylabel="speed-up", xticks=ranks)
    axes.legend()
    return figure


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(13, 6.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _bars(axes: Axes, places: Sequence[float], found: Sequence[dict[str, float]], width: float, **style: Any) -> None:
    medians = [f["median"] for f in found]
    errors = [[f["median"] - f["lower"] for f in found], [f["upper"] - f["median"] for f in found]]
    axes.bar(places, [m - 1 for m in medians], width, bottom=1, yerr=errors, error_kw={"linewidth": 0.8}, **style)
    for x, f in zip(places, found, strict=True):
        y = f["upper"] if f["median"] >= 1 else f["lower"]
        axes.annotate(
            f"{f['median']:.2f}", (x, y), (0, 3 if f["median"] >= 1 else -3), textcoords="offset points", rotation=90,
            ha="center", va="bottom" if f["median"] >= 1 else "top", fontsize=7.5,
        )  # fmt: skip


def _style(names: Sequence[str], name: str) -> dict[str, Any]:
    return {"label": name, "color": f"C{names.index(name)}"}

"""Draw docs/images/overview.png, the picture of the README: `python -m benchmarks.readme_picture`.

The bars on the left are a table of benchmarks/log.md (2026-11-21, `ddl bench step --variants
ddl_mpi,ddp,horovod --pairs 10`, np=2). The bars on the right are the table of docs/strategies.md
(`python -m benchmarks.strategies --only "slow network"`, np=4).
"""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

ROOT = Path(__file__).parents[1]
PEERS = {"ddl": "#0072b2", "gloo DDP": "#e69f00", "Horovod": "#009e73"}
"""Color of each column of the table of step times."""


def step_times() -> dict[str, list[float]]:
    """Return the time of a step with SGD over the step without communication, by model: ours, gloo DDP, Horovod."""
    rows = _rows("benchmarks/log.md", "| workload | ours | gloo DDP | Horovod |")
    return {
        row[0].removesuffix(" SGD, AdamW"): [float(cell.partition(",")[0]) for cell in row[1:]]
        for row in rows
        if row[0].endswith("SGD, AdamW")
    }


def seconds_to_target() -> dict[str, float]:
    """Return the seconds to 95 % of held-out accuracy on the emulated network, by strategy."""
    rows = _rows("docs/strategies.md", "| strategy | seconds to 95 % |")
    return {row[0].replace("`", ""): float(row[1]) for row in rows}


def picture() -> Figure:
    """Return the figure of both tables."""
    figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_steps(left, step_times())
    _draw_seconds(right, seconds_to_target())
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_steps(axes: Axes, times: dict[str, list[float]]) -> None:
    width = 0.27
    for number, (name, color) in enumerate(PEERS.items()):
        places = [i + (number - 1) * width for i in range(len(times))]
        # Bars begin at 1, the step without communication; a bar below it hangs down.
        heights = [row[number] - 1 for row in times.values()]
        bars = axes.bar(places, heights, width, bottom=1, color=color, label=name)
        axes.bar_label(bars, [f"{h + 1:.2f}" for h in heights], fontsize=7, padding=1)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 5]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(range(len(times)), list(times))
    axes.set_ylabel("step time / without communication")
    axes.set_title("One host: 2 ranks, SGD, 2 CPU cores", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _draw_seconds(axes: Axes, seconds: dict[str, float]) -> None:
    bars = axes.barh(list(seconds), list(seconds.values()), color="#0072b2")
    axes.bar_label(bars, fontsize=8, padding=2)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("seconds to 95 % held-out accuracy")
    axes.set_title("Slow network: 4 ranks, emulated 1 Gbit/s, 5 ms", fontsize=10)


def _rows(file: str, header: str) -> list[list[str]]:
    """Return the cells of the first table of `file` whose first line begins with `header`."""
    text = (ROOT / file).read_text(encoding="utf-8")
    (table,) = re.findall(rf"^{re.escape(header)}.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


if __name__ == "__main__":
    picture().savefig(ROOT / "docs" / "images" / "overview.png")

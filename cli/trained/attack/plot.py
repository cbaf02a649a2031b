"""Pictures of `ddl attack`: accuracy over epsilon, and a map of corruptions and severities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
"""The colours of Okabe and Ito, which colour-blind readers can distinguish."""
MARKERS = "osD^vP"
ALL = "all together"
"""The name of the curve of the samples that survive every attack."""
NAMES = {"linf": "largest change of a value", "l2": "length of all changes"}
DARK = 0.55
"""Values below this share of the colour map get white text."""


def robustness(attacks: Mapping[str, Any], title: str) -> Figure:
    """Draw the accuracy under each attack over epsilon, and the clean accuracy."""
    figure = Figure(figsize=(7.5, 4.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(title, fontsize=10, parse_math=False)
    epsilons = attacks["epsilon"]
    for number, (name, values) in enumerate(attacks["accuracy"].items()):
        axes.plot(epsilons, [100 * value for value in values], label=name, **_style(name, number))
    clean = 100 * next(iter(attacks["accuracy"].values()))[0]
    axes.axhline(clean, color="#777777", linewidth=0.9, linestyle=":")
    axes.annotate(f"clean {clean:.1f} %", (max(epsilons), clean), ha="right", va="bottom", fontsize=9, color="#555555")
    axes.set_xlabel(f"epsilon ({attacks['norm']}: {NAMES[attacks['norm']]}), {attacks['unit']}")
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(-3, 107)
    _plain(axes)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _style(name: str, number: int) -> dict[str, Any]:
    """Return the style of the curve `name`; that of all attacks lies on the strongest one at each epsilon."""
    if name == ALL:
        return {"color": "black", "linestyle": "--", "linewidth": 0.9}
    marker = MARKERS[number % len(MARKERS)]
    return {"color": COLOURS[number % len(COLOURS)], "marker": marker, "markersize": 4.5, "linewidth": 1.5}


def corruptions(found: Mapping[str, Any], title: str) -> Figure:
    """Draw a row for each corruption and a column for each severity, with the value in each field."""
    rows = found["by_severity"]
    factor = 100 if found["metric"] == "accuracy" else 1
    figure = Figure(figsize=(6.2, 1.5 + 0.3 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(title, fontsize=10, parse_math=False)
    values = [[factor * value for value in of_severities] for of_severities in rows.values()]
    low, high = (0.0, 100.0) if found["metric"] == "accuracy" else (min(map(min, values)), max(map(max, values)))
    axes.imshow(values, cmap="viridis", aspect="auto", vmin=low, vmax=high)
    for y, of_severities in enumerate(values):
        for x, value in enumerate(of_severities):
            is_dark = value < low + DARK * (high - low)
            axes.text(x, y, f"{value:.3g}", ha="center", va="center", fontsize=8, color="white" if is_dark else "black")
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows], fontsize=9)
    axes.set_xticks(range(len(values[0])), [str(severity + 1) for severity in range(len(values[0]))])
    unit = ", %" if found["metric"] == "accuracy" else ""
    axes.set_xlabel(
        f"severity; {found['metric']}{unit}: clean {factor * found['clean']:.4g}, mean {factor * found['mean']:.4g}"
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)

"""Draw the result of an evaluation: one PNG file for each kind of picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cli.output import drawings
from hvd_train.text.names import printable

Result = Mapping[str, Any]
Draw = Callable[[Figure, Result], None]

COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
"""Ten colours that are distinct with any colour vision (Petroff, arXiv 2107.02270)."""
BLUE, ORANGE, GREY = "#3f90da", "#e76300", "#717581"
MOST_CURVES = len(COLOURS)
MOST_NAMED = 40
"""Classes whose names and counts have room in a confusion matrix."""
LONGEST = 18
IN_A_ROW = 5
"""Worst samples in a row."""


def save(result: Result, folder: Path) -> list[str]:
    """Write the pictures that the result has to `folder`, and return the names of the files."""
    names = []
    for name, size, draw in _pictures(result):
        figure = Figure(figsize=size, dpi=100, layout="constrained")
        draw(figure, result)
        figure.savefig(folder / f"{name}.png")
        names.append(f"{name}.png")
    return names


def _pictures(result: Result) -> Iterator[tuple[str, tuple[float, float], Draw]]:
    if result.get("confusion"):
        side = min(14.0, max(5.0, 0.45 * len(result["rows"]) + 2))
        yield "confusion", (side + 1, side), confusion
    if any(result.get("curves") or ()):
        yield "roc", (7, 5.4), roc
        yield "precision-recall", (7, 5.4), precision_recall
    if result.get("calibration", {}).get("error") is not None:
        yield "calibration", (5.4, 6), calibration
    if result.get("points", {}).get("targets"):
        columns = len(result["points"]["targets"][0])
        yield "residuals", (10, 3.6 * columns + 0.4), residuals
    if len(result.get("positions", ())) > 1:
        yield "positions", (7, 4), positions
    if result.get("played"):
        yield "returns", (9, 4), returns
    images = [one for one in result.get("drawings", ()) if one["name"].startswith("input")]
    if images:
        rows = drawings.grid_rows(len(result["worst"]), IN_A_ROW)
        yield "worst", (1.9 * IN_A_ROW, 0.5 + 2.4 * rows), worst


def returns(figure: Figure, result: Result) -> None:
    """Draw the return of each episode, and a histogram of the returns."""
    values = [episode["return"] for episode in result["played"]]
    metrics = result["metrics"]
    low, high = metrics["return_iqm_low"], metrics["return_iqm_high"]
    by_episode, histogram = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    by_episode.plot(range(len(values)), values, ".", color=BLUE, markersize=5)
    by_episode.set(xlabel="episode", ylabel="return")
    by_episode.xaxis.set_major_locator(MaxNLocator(integer=True))
    histogram.hist(values, bins=min(40, max(10, len(values) // 4)), color=BLUE, orientation="horizontal")
    histogram.set(xlabel="episodes")
    histogram.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    for axes in (by_episode, histogram):
        axes.axhspan(low, high, color=ORANGE, alpha=0.25, linewidth=0)
        axes.axhline(metrics["return_iqm"], color=ORANGE, linewidth=1.5)
        axes.spines[["top", "right"]].set_visible(False)
    acts = "actions as in training" if result["stochastic"] else "best actions"
    figure.suptitle(
        f"Returns by {acts}: interquartile mean {metrics['return_iqm']:.4g}, 95 % in [{low:.4g}, {high:.4g}]",
        fontsize=11,
    )


def confusion(figure: Figure, result: Result) -> None:
    """Draw shares of each target, and the counts where they have room."""
    counts = np.array(result["confusion"], dtype=np.float64)
    names = [_short(row["class"]) for row in result["rows"]]
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the samples of the target", shrink=0.8)
    axes.set(xlabel="prediction", ylabel="target", title="Confusion matrix")
    if len(names) > MOST_NAMED:
        return
    turned = max(map(len, names)) > 3
    axes.set_xticks(range(len(names)), names, rotation=90 if turned else 0, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    size = min(10, 180 / len(names))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=colour, fontsize=size)


def roc(figure: Figure, result: Result) -> None:
    """Draw the true positive rate over the false positive rate."""
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    for label, colour, points in _curves(result, "auroc"):
        axes.plot([0, *points["false_positive_rate"]], [0, *points["recall"]], color=colour, label=label)
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    _finish(figure, axes, f"ROC, {_against(result)}")


def precision_recall(figure: Figure, result: Result) -> None:
    """Draw precision over recall."""
    axes = figure.subplots()
    for label, colour, points in _curves(result, "average_precision"):
        axes.step(points["recall"], points["precision"], where="pre", color=colour, label=label)
    axes.set(xlabel="recall", ylabel="precision")
    _finish(figure, axes, f"Precision and recall, {_against(result)}")


def calibration(figure: Figure, result: Result) -> None:
    """Draw the reliability diagram, and the number of predictions in each bin."""
    found = result["calibration"]
    bins = [one for one in found["bins"] if one["samples"]]
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    width = found["bins"][0]["to"]
    middles = [(one["from"] + one["to"]) / 2 for one in bins]
    above.bar(middles, [one["accuracy"] for one in bins], 0.92 * width, color=BLUE, label="frequency")
    confidences = [one["confidence"] for one in bins]
    above.plot(confidences, confidences, "_", color=ORANGE, markersize=12, markeredgewidth=2, label="mean probability")
    above.set(ylabel="frequency", xlim=(0, 1), ylim=(0, 1.02), title=_calibration_title(result))
    above.legend(frameon=False, loc="upper left")
    below.bar(middles, [one["samples"] for one in bins], 0.92 * width, color=GREY)
    below.set(xlabel=_event(result), ylabel="predictions")
    below.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)


def residuals(figure: Figure, result: Result) -> None:
    """Draw predictions over targets, and a histogram of the residuals, of each target."""
    points = result["points"]
    targets, predictions = np.array(points["targets"]), np.array(points["predictions"])
    names = [row["target"] for row in result["rows"]]
    for (parity, histogram), name, y, found in zip(
        figure.subplots(targets.shape[1], 2, squeeze=False), names, targets.T, predictions.T, strict=False
    ):
        low, high = min(y.min(), found.min()), max(y.max(), found.max())
        parity.plot([low, high], [low, high], color=GREY, linestyle=":", linewidth=1)
        parity.plot(y, found, ".", color=BLUE, markersize=4, alpha=0.6)
        parity.set_xlabel(f"target {_short(name)}", parse_math=False)
        parity.set_ylabel("prediction")
        histogram.hist(found - y, bins=40, color=BLUE)
        histogram.axvline(0, color=GREY, linestyle=":", linewidth=1)
        histogram.set(xlabel="residual, prediction - target", ylabel="samples")
        for axes in (parity, histogram):
            axes.spines[["top", "right"]].set_visible(False)
    every = points["every"]
    which = "all samples" if every == 1 else f"every {every}th sample"
    figure.suptitle(f"Predictions and residuals of {which}", fontsize=11)


def positions(figure: Figure, result: Result) -> None:
    """Draw the loss of a token over its position in the sample."""
    axes = figure.subplots()
    axes.plot(range(len(result["positions"])), result["positions"], color=BLUE)
    axes.set(xlabel="position in the context", ylabel="loss in nats", title="Loss of a token by its context")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def worst(figure: Figure, result: Result) -> None:
    """Draw the samples with the largest loss, with target and prediction."""
    drawing = next(one for one in result["drawings"] if one["name"].startswith("input"))
    drawings.grid(figure, drawing, [_caption(row) for row in result["worst"]], "the worst samples", IN_A_ROW)


def _caption(row: Result) -> str:
    """Return where a sample is, its target and its prediction, on three short lines."""
    place = os.path.basename(row["file"]) if "file" in row else f"number {row['position']}"
    lines = [place, *(f"{key}: {_value(row[key])}" for key in ("target", "prediction") if key in row)]
    return "\n".join(_short(line, 24) for line in lines)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _curves(result: Result, area: str) -> Iterator[tuple[str, str, Mapping[str, list[float]]]]:
    """Yield label, colour and points of the curves to draw: those with the smallest areas if there are many.

    Of two classes, the curve of the second is drawn.
    """
    rows, curves = result["rows"], result["curves"]
    known = [(row, points) for row, points in zip(rows, curves, strict=True) if points]
    if result["kind"] == "classes" and len(rows) == 2:
        known = known[-1:]
    chosen = sorted(known, key=lambda one: float(one[0][area]))[:MOST_CURVES] if len(known) > MOST_CURVES else known
    for (row, points), colour in zip(chosen, COLOURS, strict=False):
        name = row["class"] if "class" in row else row["label"]
        yield f"{_short(name)}  {row[area]:.4f}", colour, points


def _against(result: Result) -> str:
    drawn = sum(points is not None for points in result["curves"])
    if result["kind"] == "labels":
        what = "each label"
    else:
        what = "the second class" if len(result["rows"]) == 2 else "each class against the others"
    return what if drawn <= MOST_CURVES else f"the {MOST_CURVES} smallest areas of {drawn}"


def _finish(figure: Figure, axes: Axes, title: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), title=title)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(loc="outside right center", frameon=False, title="area")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _calibration_title(result: Result) -> str:
    found = result["calibration"]
    return f"Reliability: expected calibration error {found['error']:.4f}"


def _event(result: Result) -> str:
    return "probability of a label" if result["kind"] == "labels" else "probability of the prediction"


def _short(text: Any, most: int = LONGEST) -> str:
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."

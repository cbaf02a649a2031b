"""One picture of explained samples: heat maps over images and spectrograms, coloured tokens, bars of columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from cli.trained.explain.report import is_right, strongest, title
from hvd_train.text.names import printable

WIDTH = 13
RAISES, LOWERS = "#c8463b", "#3b74c8"
SIGNED, UNSIGNED = "RdBu_r", "Reds"
BARS = 8
"""Columns of a table that are drawn for a sample; 20 in the mean of all samples."""
CHARACTERS = 100
"""Characters of a text in a row."""
ROW = 0.22
"""Inches of a row of a text."""

NARROW = 7
"""Inches of the narrowest picture of texts."""
STRIP = 0.2
"""The height of the map of a waveform, which has no frequencies, over that of its spectrogram."""

Arrays = Mapping[str, Any]
Token = tuple[int, int, str, float]
"""Column, row, visible text and attribution."""


def picture(heading: str, found: Mapping[str, Any], arrays: Arrays) -> Figure:
    """Draw the first field of each sample; `arrays` is `maps.npz`."""
    kind = found["samples"][0]["fields"][0]["kind"]
    draw = _DRAWN[kind]
    figure = draw(found, arrays)
    figure.suptitle(printable(heading), parse_math=False)
    return figure


def signed(found: Mapping[str, Any]) -> bool:
    """Return True if attributions have a sign."""
    return found["samples"][0]["sum"] is not None


def colour(value: float, most: float, both: bool) -> tuple[float, float, float]:
    """Return red for what raises the score and blue for what lowers it, white at 0; channels are in 0 to 1."""
    share = max(-1.0, min(1.0, value / most if most else 0.0))
    # The ends of the maps are too dark for black letters.
    red, green, blue, _ = colormaps[SIGNED](0.5 + 0.35 * share) if both else colormaps[UNSIGNED](0.7 * abs(share))
    return red, green, blue


def _figure(height: float, width: float = WIDTH) -> Figure:
    return Figure(figsize=(width, height), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))


def _images(found: Mapping[str, Any], arrays: Arrays) -> Figure:
    """Draw pairs: the image, and its map over a pale copy of it."""
    samples, across = found["samples"], 4
    rows = -(-len(samples) // across)
    figure = _figure(0.9 + 1.85 * rows)
    cells = figure.subplots(rows, 2 * across, squeeze=False)
    for axes in cells.flat:
        axes.set_axis_off()
    for number, sample in enumerate(samples):
        plain, over = cells[number // across, number % across * 2 : number % across * 2 + 2]
        image, heat = _pair(sample, arrays)
        image = image[..., 0] if image.shape[-1] == 1 else image
        plain.imshow(image, cmap="gray", vmin=0, vmax=1)
        plain.set_title(f"sample {sample['sample']}", fontsize=9)
        over.imshow(image.mean(-1) if image.ndim == 3 else image, cmap="gray", vmin=-1.5, vmax=1)
        _heat(over, heat, signed(found))
        over.set_title(title(sample), fontsize=9, parse_math=False, color="black" if is_right(sample) else RAISES)
    _legend(figure, list(cells.flat), signed(found))
    return figure


def _spectra(found: Mapping[str, Any], arrays: Arrays) -> Figure:
    """Draw spectrograms with their maps over them; a waveform has one value for each frame."""
    samples, across = found["samples"], 4
    rows = -(-len(samples) // across)
    figure = _figure(0.9 + 2.2 * rows)
    cells = figure.subplots(rows, across, squeeze=False)
    for axes in cells.flat[len(samples) :]:
        axes.set_axis_off()
    for sample, axes in zip(samples, cells.flat, strict=False):
        spectrum, heat = _pair(sample, arrays)
        seconds = spectrum.shape[-1] * sample["fields"][0].get("hop_ms", 1000.0) / 1000
        high = float(spectrum.shape[0])
        axes.imshow(spectrum, **_shades(spectrum), origin="lower", aspect="auto", extent=(0.0, seconds, 0.0, high))
        place = (0.0, seconds, 0.0, high) if heat.ndim == 2 else (0.0, seconds, high, high * (1 + STRIP))
        _heat(axes, np.atleast_2d(heat), signed(found), origin="lower", aspect="auto", extent=place)
        axes.set(ylim=(0, place[-1]))
        axes.set_title(f"sample {sample['sample']}: {title(sample)}", fontsize=9, parse_math=False)
        axes.set(yticks=[])
        axes.tick_params(labelsize=7, length=2)
    for axes in cells[-1]:
        axes.set_xlabel("seconds" if "hop_ms" in samples[0]["fields"][0] else "", fontsize=8)
    for axes in cells[:, 0]:
        axes.set_ylabel("frequency" if "hop_ms" in samples[0]["fields"][0] else "", fontsize=8)
    _legend(figure, list(cells.flat), signed(found))
    return figure


def _shades(spectrum: Any) -> dict[str, Any]:
    """Return greys of which the darkest is not black, so that colours over them are seen."""
    low, high = (float(q) for q in np.percentile(spectrum, (2, 99.8)))
    return {"cmap": "gray", "vmin": low - (high - low) / 2, "vmax": high}


def _tables(found: Mapping[str, Any], arrays: Arrays) -> Figure:
    """Draw the mean magnitude of each column, and the strongest columns of each sample."""
    samples, across = found["samples"], 4
    rows = -(-len(samples) // across)
    columns = min(BARS, len(samples[0]["fields"][0]["parts"]))
    means = _means(samples)[:20]
    heights = [0.6 + 0.22 * len(means), rows * (0.65 + 0.2 * columns)]
    figure = _figure(0.6 + sum(heights))
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    axes = above.subplots()
    axes.barh([printable(name) for name, _ in means], [value for _, value in means], 0.7, color="#8a8f98")
    axes.invert_yaxis()
    axes.set_title("mean magnitude over these samples", fontsize=10)
    _plain(axes)
    cells = below.subplots(rows, across, squeeze=False)
    for empty in cells.flat[len(samples) :]:
        empty.set_axis_off()
    for sample, axes in zip(samples, cells.flat, strict=False):
        _bars(axes, sample, columns)
    return figure


def _bars(axes: Axes, sample: Mapping[str, Any], columns: int) -> None:
    parts = strongest(sample, columns)
    values = [attribution for _, _, attribution in parts]
    axes.barh(range(len(parts)), values, 0.7, color=[RAISES if value > 0 else LOWERS for value in values])
    labels = [printable(_clipped(part) + (f" = {_clipped(value)}" if value else "")) for part, value, _ in parts]
    axes.set_yticks(range(len(parts)), labels, parse_math=False)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.invert_yaxis()
    score = title(sample) if sample["probability"] is not None else f"{sample['score']:.4g}"
    axes.set_title(f"sample {sample['sample']}: {score}", fontsize=9, parse_math=False)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8, length=2)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _texts(found: Mapping[str, Any], arrays: Arrays) -> Figure:
    """Draw each text with its tokens coloured, in rows of letters of equal width."""
    laid = [_laid(sample["fields"][0]) for sample in found["samples"]]
    rows = [1 + max(row for _, row, _, _ in tokens) for tokens in laid]
    wide = max(column + len(word) for tokens in laid for column, _, word, _ in tokens)
    heights = [0.35 + ROW * number for number in rows]
    figure = _figure(0.9 + sum(heights), max(NARROW, WIDTH * wide / CHARACTERS))
    cells = figure.subplots(len(laid), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, sample, tokens, number in zip(cells, found["samples"], laid, rows, strict=True):
        axes.set(xlim=(0, max(wide, CHARACTERS * NARROW / WIDTH)), ylim=(number, 0))
        axes.set_axis_off()
        what = "next is " if found["task"] == "language" else ""
        axes.set_title(f"sample {sample['sample']}: {what}{title(sample)}", fontsize=9, loc="left", parse_math=False)
        _tokens(axes, tokens, signed(found))
    _legend(figure, list(cells), signed(found))
    return figure


def _tokens(axes: Axes, tokens: Sequence[Token], both: bool) -> None:
    most = max(abs(value) for _, _, _, value in tokens)
    for column, row, word, value in tokens:
        box = Rectangle((column, row + 0.05), len(word), 0.9, color=colour(value, most, both), linewidth=0)
        axes.add_patch(box)
        for place, letter in enumerate(word):
            at = column + place + 0.5, row + 0.5
            axes.text(*at, letter, ha="center", va="center", fontsize=9, family="monospace", parse_math=False)


def _laid(field: Mapping[str, Any]) -> list[Token]:
    """Return column, row, visible text and attribution of each token."""
    found, column, row = [], 0, 0
    for part, value in zip(field["parts"], field["attributions"], strict=True):
        word = visible(part)
        if column + len(word) > CHARACTERS:
            column, row = 0, row + 1
        found.append((column, row, word[:CHARACTERS], value))
        column += len(word)
    return found


def visible(token: str) -> str:
    """Return the text of a token on one line: line ends and tabs as symbols, an empty token as a dot."""
    return printable(token.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")) or "·"


def _pair(sample: Mapping[str, Any], arrays: Arrays) -> tuple[Any, Any]:
    return arrays[f"{sample['sample']}.0.input"], arrays[f"{sample['sample']}.0.map"]


def _heat(axes: Axes, heat: Any, both: bool, **placed: Any) -> None:
    """Draw a map whose small values are transparent."""
    most = float(np.percentile(np.abs(heat), 99.5)) or float(np.abs(heat).max()) or 1.0
    share = np.clip(heat / most, -1, 1)
    coloured = colormaps[SIGNED](0.5 + 0.42 * share) if both else colormaps[UNSIGNED](0.35 + 0.6 * np.abs(share))
    coloured[..., 3] = np.clip(1.3 * np.abs(share), 0, 1)
    axes.imshow(coloured, interpolation="nearest", **placed)


def _legend(figure: Figure, axes: Sequence[Axes], both: bool) -> None:
    drawn = ScalarMappable(Normalize(-1 if both else 0, 1), SIGNED if both else UNSIGNED)
    bar = figure.colorbar(drawn, ax=axes, orientation="horizontal", aspect=60, shrink=0.5, fraction=0.03, pad=0.01)
    ends = ("lowers the score", "", "raises the score") if both else ("does not matter", "", "matters")
    bar.set_ticks([-1 if both else 0, 0 if both else 0.5, 1], labels=ends)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)


def _means(samples: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    names = samples[0]["fields"][0]["parts"]
    values = np.abs([sample["fields"][0]["attributions"] for sample in samples]).mean(0).tolist()
    return sorted(zip(names, values, strict=True), key=lambda pair: -pair[1])


def _clipped(text: str, most: int = 18) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


_DRAWN: dict[str, Callable[[Mapping[str, Any], Arrays], Figure]] = {
    "image": _images,
    "waveform": _spectra,
    "spectrogram": _spectra,
    "array": _spectra,
    "table": _tables,
    "text": _texts,
}

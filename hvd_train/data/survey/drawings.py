"""What a picture and the terminal show of single samples: small images, curves and excerpts of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hvd_train.data.survey.samples import Fields
from hvd_train.data.survey.statistics import array
from hvd_train.data.tokenizing.saved import Decode
from hvd_train.data.value_checks import Array

Kind = Literal["image", "map", "curve"]

SHOWN = 16
MOST_PIXELS = 96
POINTS = 240
"""Points of a curve. Each has the lowest and the highest value of a part of the sequence."""
FEWEST_POINTS = 200
FEWEST_PIXELS = 4
CHANNELS = (1, 3, 4)
EXCERPTS = 3
CHARACTERS = 300


def drawings(samples: Sequence[Fields], *, spectra: bool = False) -> list[dict[str, Any]]:
    """Return the fields that can be drawn: name, kind, and the values of the first samples, as JSON.

    An image is rows of pixels in 0 to 255, of one or three channels; a map is rows of numbers; a
    curve is a list of lowest and a list of highest values. `spectra` are maps.
    """
    found = []
    for name, first in samples[0].items():
        kind = kind_of(first)
        kind = "map" if spectra and kind == "image" else kind
        if kind:
            arrays = [array(sample[name]) for sample in samples[:SHOWN]]
            found.append({"name": name, "kind": kind, "values": _drawn(kind, arrays)})
    return found


def kind_of(leaf: Any) -> Kind | None:
    """Return how a field is drawn, by its shape: (channels, rows, columns), (rows, columns), (points)."""
    if not isinstance(leaf, Tensor | np.ndarray):
        return None
    shape, real = tuple(leaf.shape), array(leaf).dtype.kind == "f"
    if len(shape) == 3 and (shape[0] in CHANNELS or shape[-1] in CHANNELS):
        return "image"
    if len(shape) == 3 or (len(shape) == 2 and min(shape) >= FEWEST_PIXELS):
        return "map"
    long = real and bool(shape) and shape[-1] >= FEWEST_POINTS
    return "curve" if long and len(shape) <= 2 else None


def excerpts(samples: Sequence[Fields], target: str | None, decode: Decode | None) -> dict[str, list[str]]:
    """Return the beginnings of the first texts of each field of texts, or of tokens that `decode` reads."""
    found = {}
    for name, first in samples[0].items():
        leaves = [sample[name] for sample in samples[:EXCERPTS]]
        if isinstance(first, str):
            found[name] = [text[:CHARACTERS] for text in leaves]
        elif decode and name != target and array(first).ndim == 1 and array(first).dtype.kind == "i":
            found[name] = [decode(array(leaf)[:CHARACTERS].tolist())[:CHARACTERS] for leaf in leaves]
    return found


def _drawn(kind: Kind, arrays: Sequence[Array]) -> list[Any]:
    if kind == "curve":
        return [_curve(a.reshape(-1, a.shape[-1])[0]) for a in arrays]
    if kind == "map":
        return [_map(a) for a in arrays]
    low, high = _range(arrays)
    return [_image(a, low, high) for a in arrays]


def _range(arrays: Sequence[Array]) -> tuple[float, float]:
    """Return the values that are black and white."""
    if arrays[0].dtype == np.uint8:
        return 0.0, 255.0
    values = np.concatenate([a.reshape(-1)[:: max(1, a.size // 10_000)] for a in arrays]).astype(np.float64)
    low, high = (float(q) for q in np.nanpercentile(values, (0.5, 99.5)))
    return (0.0, 1.0) if low >= 0 and 0.2 < high <= 1 else (low, high if high > low else low + 1)


def _image(a: Array, low: float, high: float) -> Any:
    first = a.shape[0] in CHANNELS
    pixels = torch.from_numpy(np.ascontiguousarray(a if first else np.moveaxis(a, -1, 0))).double()[:3]
    grey = ((_smaller(pixels) - low) / (high - low)).nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8)
    return grey[0].tolist() if len(grey) != 3 else grey.permute(1, 2, 0).tolist()


def _map(a: Array) -> Any:
    values = torch.from_numpy(np.ascontiguousarray(a)).double()
    small = _smaller((values if values.dim() == 2 else values[0])[None])[0]
    return [[float(f"{x:.4g}") for x in row] for row in small.nan_to_num().tolist()]


def _smaller(pixels: Tensor) -> Tensor:
    """Return (channels, rows, columns) with at most `MOST_PIXELS` rows and columns."""
    size = [min(n, MOST_PIXELS) for n in pixels.shape[1:]]
    return functional.interpolate(pixels[None], size, mode="area")[0] if list(pixels.shape[1:]) != size else pixels


def _curve(values: Array) -> list[list[float]]:
    parts = np.array_split(np.nan_to_num(values), min(POINTS, len(values)))
    return [[float(f"{end(part):.4g}") for part in parts] for end in (np.min, np.max)]

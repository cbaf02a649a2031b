"""Statistics of one field over the samples that were read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.value_checks import Array

BINS = 24
MOST_VALUES = 200_000
"""Values that the histogram of a field uses."""


def statistics(leaves: Sequence[Any]) -> dict[str, Any]:
    """Return type, shape, range, mean and missing values of a field, as JSON.

    A dimension that differs between samples is None in the shape, and `lengths` is the histogram of
    the first one. The lengths of texts are in characters.
    """
    if isinstance(leaves[0], str):
        return {"type": "text", "shape": [None], "lengths": histogram(np.array([len(text) for text in leaves]))}
    arrays = [array(leaf) for leaf in leaves]
    described: dict[str, Any] = {"type": type_name(leaves[0]), "shape": _shape(arrays)}
    if None in described["shape"]:
        axis = described["shape"].index(None)
        described["lengths"] = histogram(np.array([a.shape[axis] for a in arrays if a.ndim > axis]))
    return {**described, **numbers(arrays)} if all(a.dtype.kind in "biuf" for a in arrays) else described


def histogram(values: Array) -> dict[str, list[float]]:
    """Return the edges and counts of equal bins; one bin for each integer if they are few."""
    low, high = float(values.min()), float(values.max())
    whole = values.dtype.kind in "biu" or bool((values == np.round(values)).all())
    if whole and high - low < BINS:
        edges = np.arange(low - 0.5, high + 1)
    elif low == high:
        edges = np.array([low - 0.5, high + 0.5])
    else:
        edges = np.linspace(low, high, BINS + 1)
    counts, _ = np.histogram(values, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def array(leaf: Any) -> Array:
    """Return a tensor, an array or a number as an array."""
    if isinstance(leaf, Tensor):
        plain = leaf.detach().cpu()
        return np.asarray(plain.float().numpy() if plain.dtype == torch.bfloat16 else plain.numpy())
    return np.asarray(leaf)


def type_name(leaf: Any) -> str:
    """Return the name of the element type of a tensor or an array, or of the type of a number."""
    return str(leaf.dtype).removeprefix("torch.") if hasattr(leaf, "dtype") else type(leaf).__name__


def _shape(arrays: Sequence[Array]) -> list[int | None]:
    shapes = {a.shape for a in arrays}
    if len({len(shape) for shape in shapes}) > 1:
        return [None]
    return [sizes.pop() if len(sizes := set(of_axis)) == 1 else None for of_axis in zip(*shapes, strict=True)]


def numbers(arrays: Sequence[Array]) -> dict[str, Any]:
    """Return range, mean, deviation, histogram, and the share of values that are not finite."""
    each = math.ceil(MOST_VALUES / len(arrays))
    flat = [a.reshape(-1) for a in arrays]
    some = np.concatenate([a[:: max(1, math.ceil(len(a) / each))] for a in flat]).astype(np.float64)
    total = sum(map(len, flat))
    known = some[np.isfinite(some)]
    if not len(known):
        return {"missing": 1.0 if total else 0.0}
    finite = [a[np.isfinite(a)] for a in flat]
    return {
        "low": min(float(a.min()) for a in finite if len(a)),
        "high": max(float(a.max()) for a in finite if len(a)),
        "mean": float(known.mean()),
        "deviation": float(known.std()),
        "missing": 1 - sum(map(len, finite)) / total,
        "histogram": histogram(known),
    }

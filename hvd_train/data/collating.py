"""From samples to a batch: walk through nested samples alike, and join the tensors at each place.

A collate function is a file in `hvd_train/data/collates` whose `create(label, **options)` returns a
picklable function from a list of samples to a batch. `label` is the key of the targets in samples
that are dicts, as `data.label_key` says. The function raises ValueError or TypeError for samples
that make no batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.nesting import like
from hvd_train.data.value_checks import Array

Place = tuple[str, ...]
"""The keys of dicts, and the positions in tuples, that lead to a value of a sample."""
Join = Callable[[Place, list[Tensor]], Tensor]
"""Makes one tensor of the tensors at a place of the samples."""


def join_samples(samples: Sequence[Any], join: Join) -> Any:
    """Return the batch of `samples`: the nesting of a sample, with the tensors of each place joined.

    - Numbers become a tensor with one value for each sample; strings become a list.
    - A list of numbers within a sample is an array. Other lists and tuples are nestings.
    """
    return _joined((), samples, join)


def dotted(place: Place) -> str:
    """Return the place as options and messages write it, such as `target.boxes` or `0`."""
    return ".".join(place)


def _joined(place: Place, values: Sequence[Any], join: Join) -> Any:
    first = values[0]
    if isinstance(first, str | bytes):
        return list(values)
    if isinstance(first, Mapping):
        _check(place, values, all(isinstance(v, Mapping) and v.keys() == first.keys() for v in values))
        return {key: _joined((*place, str(key)), [v[key] for v in values], join) for key in first}
    rows = [_row(value) for value in values] if place and isinstance(first, list) else [None]
    if all(row is not None for row in rows):
        values = rows
    elif isinstance(first, tuple | list):
        _check(place, values, all(isinstance(v, tuple | list) and len(v) == len(first) for v in values))
        parts = [_joined((*place, str(i)), [v[i] for v in values], join) for i in range(len(first))]
        return like(first, parts)
    if all(isinstance(value, Number) and not isinstance(value, np.generic) for value in values):
        return torch.tensor(values, dtype=torch.float64 if any(isinstance(v, float) for v in values) else None)
    return join(place, _of_one_dtype([_tensor(place, value) for value in values]))


def _check(place: Place, values: Sequence[Any], alike: bool) -> None:
    if not alike:
        raise ValueError(f"samples of one batch differ in their keys or lengths{_at(place)}")


def _at(place: Place) -> str:
    return f" at '{dotted(place)}'" if place else ""


def _row(value: Any) -> Array | None:
    """Return a list of numbers, or of such lists of one length, as an array; None for another value."""
    inner = value
    while isinstance(inner, list) and inner:
        inner = inner[0]
    if not isinstance(value, list) or not isinstance(inner, list | int | float):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal length
        return None
    return array if array.dtype.kind in "biuf" else None


def _tensor(place: Place, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic | Number):
        array = np.asarray(value)
        if array.dtype.kind in "biufc":
            return torch.from_numpy(array if array.flags.writeable else array.copy())
    kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a value of type {type(value).__name__}"
    raise TypeError(f"found {kind}{_at(place)}, expected tensors, arrays, numbers, strings, or dicts, tuples and lists")


def _of_one_dtype(tensors: list[Tensor]) -> list[Tensor]:
    """Return tensors in which the empty ones have the dtype of the others: an empty list has none."""
    dtype = next((t.dtype for t in tensors if t.numel()), tensors[0].dtype)
    return [t if t.numel() else t.to(dtype) for t in tensors]

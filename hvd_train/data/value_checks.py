"""Checks of the values in arrays before training: finite numbers, exact integers, valid classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvd_train.data.memory.node import ALONE, Node
from hvd_train.errors import UserError

Array = npt.NDArray[Any]
Convert = Callable[[Array], Array]
"""Returns values as the model takes them."""
Place = Callable[[tuple[int, ...]], str]
"""Returns the place of an index, such as `a.npz: array 'x' at [3, 1]`."""

LARGEST = np.finfo(np.float32).max
MOST_CLASSES_PER_SAMPLE = 100
FEW_CLASSES = 100_000
CHUNK = 2**20
"""Values that are checked at a time."""


def at(name: str) -> Place:
    """Return the place of an index in the array that messages call `name`."""
    return lambda index: f"{name} at [{', '.join(map(str, index))}]"


def single(values: Array) -> Array:
    """Return `values` in float32."""
    return values.astype(np.float32, copy=False)


def finite(values: Array, place: Place) -> Array:
    """Return `values` in float32; raise UserError as `check_values` does."""
    check_values(values, place)
    return single(values)


def check_values(values: Array, place: Place, node: Node = ALONE, convert: Convert = single) -> None:
    """Raise UserError for the first value that is not finite before or after `convert`.

    Collective: each rank of the node reads its share of the rows, `CHUNK` values at a time.
    """
    first, count = 0, 0
    for start, part in _share(values, node):
        with np.errstate(over="ignore", invalid="ignore"):
            bad = ~np.isfinite(convert(part))
        if bad.any():
            first = first if count else start + int(bad.argmax())
            count += int(bad.sum())
    found = [(first, count) for first, count in node.gather([first, count]) if count]
    if not found:
        return
    index = tuple(map(int, np.unravel_index(min(found)[0], values.shape)))
    total = sum(count for _, count in found)
    value = values[index] if values.dtype.kind == "f" else convert(values[index])
    more = f"; {total} values are like it" if total > 1 else ""
    if np.isfinite(value):
        raise UserError(f"{place(index)}: {value!s} is beyond float32, expected at most {LARGEST:.3g}{more}")
    raise UserError(f"{place(index)}: found {value!s}, expected a finite number{more}")


def _share(values: Array, node: Node) -> Iterator[tuple[int, Array]]:
    """Yield this rank's share of the rows in pieces, each with the number of its first value."""
    width = values[:1].size
    begin, end = (len(values) * number // node.size for number in (node.rank, node.rank + 1))
    step = max(1, CHUNK // max(1, width))
    for row in range(begin, end, step):
        yield row * width, values[row : min(row + step, end)]


def check_finite(values: Tensor, name: str) -> None:
    """Raise UserError for a value of the floating-point tensor `name` that is not finite."""
    if values.is_floating_point() and not torch.isfinite(values).all():
        finite(values.detach().cpu().double().numpy(), at(name))


def precision_loss(values: Array, kind: str, place: Place) -> str | None:
    """Return a warning if the dtype `kind` changes integers, or keeps few digits of the values."""
    if values.dtype.kind in "iu":
        return changed_integer(values, kind, place)
    if kind != "float32" or not values.size:
        return None
    rounded = single(values)
    lost = (rounded == 0) & (values != 0)
    if lost.any():
        index = tuple(map(int, np.unravel_index(int(lost.argmax()), lost.shape)))
        return f"{place(index)}: {values[index]!s} becomes 0 in float32; standardise, or scale the values"
    largest = np.abs(rounded).argmax()
    step = np.spacing(np.abs(rounded).flat[largest])
    if 0 < values.std() < 100 * step:
        index = tuple(map(int, np.unravel_index(int(largest), rounded.shape)))
        value = values[index]
        return f"{place(index)}: float32 rounds {value!s} to a multiple of {step:g}; standardise, or subtract an offset"
    return None


def changed_integer(values: Array, kind: str, place: Place, node: Node = ALONE) -> str | None:
    """Return a warning about the first integer that the dtype `kind` changes.

    Collective: each rank of the node reads its share of the rows, `CHUNK` values at a time.
    """
    digits = np.finfo(kind).nmant + 1
    if values.dtype.itemsize * 8 <= digits:
        return None
    mine = (start + at for start, part in _share(values, node) if (at := _first_changed(part, digits)) is not None)
    changed = [first for first in node.gather(next(mine, None)) if first is not None]
    if not changed:
        return None
    index = tuple(map(int, np.unravel_index(min(changed), values.shape)))
    rounded = int(values[index].astype(kind))
    return f"{place(index)}: {values[index]} becomes {rounded} in {kind}; identifiers are no inputs"


def _first_changed(integers: Array, digits: int) -> int | None:
    """Return the position of the first integer whose odd factor has more than `digits` binary digits."""
    wide = (
        np.abs(integers.astype(np.int64)).view(np.uint64) if integers.dtype.kind == "i" else integers.astype(np.uint64)
    )
    sizes = wide.reshape(-1)
    large = np.flatnonzero(sizes > 2**digits)
    odd = sizes[large] // (sizes[large] & (~sizes[large] + np.uint64(1)))
    changed = large[odd > 2**digits]
    return int(changed[0]) if len(changed) else None


def classes(y: Array, name: str) -> Tensor:
    """Return integers `y` as classes (int64).

    Raise UserError for negative ones, and for ones too large to be classes.
    """
    for index, value in ((y.argmin(), y.min()), (y.argmax(), y.max())):
        most = FEW_CLASSES + MOST_CLASSES_PER_SAMPLE * len(y)
        if not 0 <= int(value) < most:
            position = tuple(map(int, np.unravel_index(int(index), y.shape)))
            raise UserError(
                f"{at(name)(position)}: found the class {value} among {len(y)} samples, expected classes 0, 1, 2, ...; "
                "targets that are floats make a regression"
            )
    return torch.from_numpy(y.astype(np.int64)).reshape(-1)

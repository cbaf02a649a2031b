"""Checks of values that every data source makes before training: finite numbers, exact integers, targets that vary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvd_train.errors import UserError

Array = npt.NDArray[Any]
Place = Callable[[tuple[int, ...]], str]
"""Names the position of a value in the source, as in `a.npz: array 'x' at [3, 1]`."""

SHOWN = 5
"""Names that a message lists."""
LARGEST = np.finfo(np.float32).max
MOST_CLASSES_PER_SAMPLE = 100
FEW_CLASSES = 100_000
LOOKED_AT = 1000
"""Large integers that are tried before they are taken to be exact."""


def at(name: str) -> Place:
    """The place of an index in the array that messages call `name`."""
    return lambda index: f"{name} at [{', '.join(map(str, index))}]"


def finite(values: Array, place: Place) -> Array:
    """Return `values` in float32; UserError names the first that is not finite, there or before the conversion."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = values.astype(np.float32)
    if values.dtype.kind != "f":
        return single
    bad = ~np.isfinite(single)
    if bad.any():
        index = np.unravel_index(int(bad.argmax()), bad.shape)
        first, count = tuple(map(int, index)), int(bad.sum())
        value = values[index]
        more = f"; {count} values are like it" if count > 1 else ""
        if np.isfinite(value):
            raise UserError(f"{place(first)}: {value!s} is beyond float32, expected at most {LARGEST:.3g}{more}")
        raise UserError(f"{place(first)}: found {value!s}, expected a finite number{more}")
    return single


def finite_tensor(values: Tensor, name: str) -> None:
    """UserError where a floating point tensor holds a value that is not finite; messages call the tensor `name`."""
    if values.is_floating_point() and not torch.isfinite(values).all():
        finite(values.detach().cpu().double().numpy(), at(name))


def inexact(values: Array, kind: str, place: Place) -> str | None:
    """A warning where the dtype `kind` changes integers of `values`, such as identifiers, or all but a few digits of them."""
    if values.dtype.kind in "iu":
        limit = 2 ** (np.finfo(kind).nmant + 1)
        large = (values > limit) | (values < -limit) if values.dtype.kind == "i" else values > limit
        for index in map(tuple, np.argwhere(large)[:LOOKED_AT]):
            rounded = int(values[index].astype(kind))
            if rounded != int(values[index]):
                return f"{place(index)}: {values[index]} becomes {rounded} in {kind}; identifiers are no inputs"
        return None
    if kind != "float32" or not values.size:
        return None
    single = values.astype(np.float32)
    lost = (single == 0) & (values != 0)
    if lost.any():
        index = tuple(map(int, np.unravel_index(int(lost.argmax()), lost.shape)))
        return f"{place(index)}: {values[index]!s} becomes 0 in float32; standardise, or scale the values"
    largest = np.abs(single).argmax()
    step, index = np.spacing(np.abs(single).flat[largest]), np.unravel_index(int(largest), single.shape)
    if 0 < values.std() < 100 * step:
        place_, value = place(tuple(map(int, index))), values[index]
        return f"{place_}: float32 rounds {value!s} to a multiple of {step:g}; standardise, or subtract an offset"
    return None


def classes(y: Array, name: str) -> Tensor:
    """Class numbers of integers `y`; UserError for negative ones, and for numbers too large to be classes."""
    for index, value in ((y.argmin(), y.min()), (y.argmax(), y.max())):
        most = FEW_CLASSES + MOST_CLASSES_PER_SAMPLE * len(y)
        if not 0 <= int(value) < most:
            position = tuple(map(int, np.unravel_index(int(index), y.shape)))
            raise UserError(
                f"{at(name)(position)}: found the class {value} among {len(y)} samples, expected classes 0, 1, 2, ...; "
                "targets that are floats make a regression"
            )
    return torch.from_numpy(y.astype(np.int64)).reshape(-1)


def remarks(train: Tensor, test: Tensor, outputs: int, name: str, classes: Sequence[Any] = ()) -> list[str]:
    """Warnings about targets: int64 classes `(n,)`, called by their number or by `classes`, or floats `(n, k)`."""
    if len(train) < 2:
        return []
    if train.dtype != torch.int64:
        return _of_numbers(train, name)
    return _of_classes(train, test, classes or range(outputs), name)


def _of_classes(train: Tensor, test: Tensor, classes: Sequence[Any], name: str) -> list[str]:
    counts = torch.bincount(train, minlength=len(classes)).tolist()
    if sum(map(bool, counts)) == 1:
        return [f"{name}: all {len(train)} training targets are {classes[int(train[0])]}, so there is nothing to learn"]
    absent = [c for c, count in enumerate(counts) if not count]
    if not absent:
        return []
    held_out = int(torch.isin(test, torch.tensor(absent)).sum())
    also = f", though {held_out} held-out samples are of them" if held_out else ""
    return [f"{name}: no training sample of {_listed([classes[c] for c in absent], 'class', 'classes')}{also}"]


def _of_numbers(y: Tensor, name: str) -> list[str]:
    constant = (y == y[0]).all(0).nonzero().flatten().tolist()
    if constant:
        which = f" in {_listed(constant, 'column', 'columns')}" if y.shape[1] > 1 else ""
        return [f"{name}: all {len(y)} training targets are {y[0, constant[0]]:g}{which}, so there is nothing to learn"]
    if y.shape[1] > 1:
        one_hot = bool(((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all())
        return [f"{name}: one-hot rows make a regression here; numbers of classes make a classification"] * one_hot
    values = y.unique()
    if len(values) <= min(SHOWN * 4, len(y) // 2) and torch.equal(values, values.round()):
        return [
            f"{name}: floats make a regression, though all of them are whole numbers ({_some(values.long().tolist())}); "
            "integers make classes"
        ]
    return []


def _listed(names: Sequence[Any], one: str, many: str) -> str:
    return f"{one if len(names) == 1 else many} {_some(names)}"


def _some(names: Sequence[Any]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more

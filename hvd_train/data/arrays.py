"""From arrays of inputs and targets in memory to a data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_train.data.base import Dataset, describe, tensor_split
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.target_warnings import target_warnings
from hvd_train.data.value_checks import Array, at, classes, finite, precision_loss
from hvd_train.errors import UserError


@dataclass(frozen=True)
class NamedArray:
    """An array and its name in messages, such as `a.npz: array 'x'`."""

    values: Array
    name: str


@dataclass(frozen=True)
class Samples:
    """Inputs `(n, ...)` in float32, with int64 classes `(n,)` or float32 targets `(n, k)`."""

    x: Tensor
    y: Tensor
    name: str
    """The name of the targets in messages."""
    warnings: tuple[str, ...] = ()


def as_samples(x: NamedArray, y: NamedArray) -> Samples:
    """Return inputs and targets as tensors. Integer targets, one for each sample, are classes.

    Raise UserError for arrays that hold no real numbers, are empty or differ in length, for values
    that are not finite, and for negative classes.
    """
    check_arrays(x, y)
    inputs = torch.from_numpy(finite(x.values, at(x.name))).reshape(len(x.values), *(x.values.shape[1:] or (1,)))
    warning = precision_loss(x.values, "float32", at(x.name)) if x.values.dtype.kind in "iu" else None
    return Samples(inputs, _targets(y), y.name, (warning,) if warning else ())


def check_arrays(x: NamedArray, y: NamedArray) -> None:
    """Raise UserError for arrays that hold no real numbers, are empty or differ in length."""
    for array in (x, y):
        if array.values.dtype.kind not in "biuf" or array.values.ndim == 0:
            raise UserError(f"{array.name} is {_kind_of(array.values)}")
    if len(x.values) != len(y.values):
        raise UserError(
            f"{x.name}, {y.name}: {len(x.values)} inputs but {len(y.values)} targets, expected one target for each input"
        )
    for array in (x, y):
        if array.values.size == 0:
            raise UserError(f"{array.name}: empty, expected at least one sample")


def _kind_of(array: Array) -> str:
    hint = {
        "c": "real numbers: store real and imaginary parts as two values",
        "U": "numbers: numpy.unique(texts, return_inverse=True)[1] numbers texts as classes",
        "V": "numbers: store each field as an array; bfloat16 as float32",
        "M": "numbers: store times as seconds",
    }.get(array.dtype.kind, "numbers")
    return f"{array.dtype} of shape {array.shape}, expected {hint}, one row a sample"


def _targets(y: NamedArray) -> Tensor:
    if y.values.dtype.kind == "f" or y.values.size != len(y.values):
        return torch.from_numpy(finite(y.values, at(y.name))).reshape(len(y.values), -1)
    return classes(y.values, y.name)


def held_out(whole: Samples, hold_out: HoldOut, where: str) -> Dataset:
    """Return a data set of which `hold_out` chooses the held-out samples."""
    is_class = whole.y.dtype == torch.int64
    rows = hold_out.rows(len(whole.x), where, whole.y if is_class else None)
    train, test = (tensor_split(whole.x[part], whole.y[part]) for part in rows)
    spec = describe(train.x, whole.y)
    warnings = (*whole.warnings, *target_warnings(train.y, test.y, spec.outputs, whole.name))
    return Dataset(train, test, spec, warnings, input={"kind": "arrays"})

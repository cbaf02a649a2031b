"""From mapped arrays of inputs and targets to a data set whose samples stay in the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.arrays import NamedArray, check_arrays
from hvd_train.data.base import Dataset
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.mapped import MappedArray
from hvd_train.data.memory.node import Node
from hvd_train.data.memory.once import once
from hvd_train.data.memory.rows import MappedRows, MappedSplit
from hvd_train.data.spec import DataSpec
from hvd_train.data.target_warnings import number_warnings, target_warnings
from hvd_train.data.value_checks import CHUNK, Array, Convert, at, changed_integer, check_values, classes, single
from hvd_train.errors import UserError

BYTE = 255
"""The largest byte."""


def widened(bits: Array) -> Array:
    """Return bfloat16 numbers, given as uint16, in float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def scaled(values: Array) -> Array:
    """Return bytes as float32 in [0, 1]."""
    return np.divide(values, BYTE, dtype=np.float32)


@dataclass(frozen=True)
class StoredArray:
    """A mapped array, its name in messages, and how its values become float32."""

    array: MappedArray
    name: str
    convert: Convert = single
    member: str | None = None
    """The name of the array within its file; None if the file holds one array."""

    @property
    def facts(self) -> dict[str, Any]:
        """How new inputs are read, as JSON."""
        named = {} if self.member is None else {"name": self.member}
        return {"kind": "arrays", **named, **({"scale": BYTE} if self.convert is scaled else {})}

    @property
    def is_float(self) -> bool:
        return self.array.dtype.kind == "f" or self.convert is widened

    def check(self, node: Node) -> str | None:
        """Raise UserError for values that are not finite.

        Return a warning if integers change. Collective.
        """
        values, place = self.array.values, at(self.name)
        if self.is_float:
            check_values(values, place, node, self.convert)
        elif values.dtype.kind in "iu" and self.convert is single:
            return changed_integer(values, "float32", place, node)
        return None


@dataclass(frozen=True)
class Part:
    """Inputs and targets of some samples, and the file that messages name.

    Integer targets, one for each sample, are classes.
    """

    x: StoredArray
    y: StoredArray
    where: str
    groups: StoredArray | None = None
    """The group of each sample, for folds."""

    def __len__(self) -> int:
        return len(self.x.array)

    @property
    def has_classes(self) -> bool:
        return not self.y.is_float and self.y.array.values.size == len(self)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.x.array.shape[1:] or (1,)

    @property
    def width(self) -> int:
        """The number of target values of a sample."""
        return prod(self.y.array.shape[1:])

    @property
    def targets(self) -> str:
        return "classes" if self.has_classes else f"{self.width} target values"


def group_numbers(groups: StoredArray, samples: int) -> Tensor:
    """Return the group of each sample, int64 `(n,)`; UserError for an array of other values or another shape."""
    values = groups.array.values
    if values.shape != (samples,) or values.dtype.kind not in "iu":
        raise UserError(
            f"{groups.name} is {values.dtype} of shape {values.shape}, expected one integer for each of {samples} samples"
        )
    return torch.from_numpy(values.astype(np.int64))


def dataset(train: Part, tests: Mapping[str, Part], hold_out: HoldOut | None, node: Node) -> Dataset:
    """Return a data set of mapped samples; collective.

    The first of `tests` is the test split. Without `tests`, a random part of `train` is held out,
    or none without `hold_out`.

    Raise UserError for arrays that hold no real numbers, are empty or differ in length, for values
    that are not finite, for negative classes, for test samples of another shape, and if no training
    samples are left.
    """
    parts = [train, *tests.values()]
    warnings = [warning for part in parts if (warning := _checked(part, node))]
    for part in parts[1:]:
        _check_alike(train, part)
    arrays, facts = once(node, partial(_prepared, parts, None if tests else hold_out))
    splits = [_split(part, arrays, number) for number, part in enumerate(parts if tests else [train, train])]
    spec = DataSpec(train.input_shape, facts["outputs"], "classification" if train.has_classes else "regression")
    others = dict(zip(list(tests)[1:], splits[2:], strict=True))
    return Dataset(splits[0], splits[1], spec, (*warnings, *facts["warnings"]), others=others, input=train.x.facts)


def _checked(part: Part, node: Node) -> str | None:
    x, y = part.x, part.y
    check_arrays(NamedArray(x.array.values, x.name), NamedArray(y.array.values, y.name))
    warning = x.check(node)
    if y.is_float:
        y.check(node)
    return warning


def _check_alike(train: Part, test: Part) -> None:
    if (train.input_shape, train.targets) != (test.input_shape, test.targets):
        raise UserError(
            f"{test.where}: samples of shape {test.input_shape} with {test.targets}, "
            f"expected {train.input_shape} with {train.targets} as in the training data"
        )


def _prepared(parts: list[Part], hold_out: HoldOut | None) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return what the ranks of a node share besides the files.

    For split number i, `rows i` has its rows in the arrays of a random split, and `labels i` its
    classes. The facts are the outputs and the warnings about the targets.
    """
    train = parts[0]
    of_parts = [classes(part.y.array.values, part.y.name) for part in parts] if train.has_classes else []
    rows: list[Tensor | None] = [None] * len(parts)
    if len(parts) == 1:
        rows = _rows(train, of_parts[0] if of_parts else None, hold_out)
    arrays = {f"rows {i}": order.numpy() for i, order in enumerate(rows) if order is not None}
    if not of_parts:
        return arrays, {"outputs": train.width, "warnings": _number_warnings(train, rows[0])}
    labels = of_parts if len(parts) > 1 else [of_parts[0] if order is None else of_parts[0][order] for order in rows]
    arrays |= {f"labels {i}": of.numpy() for i, of in enumerate(labels)}
    outputs = int(torch.cat(of_parts).max()) + 1
    return arrays, {"outputs": outputs, "warnings": target_warnings(labels[0], labels[1], outputs, train.y.name)}


def _rows(train: Part, labels: Tensor | None, hold_out: HoldOut | None) -> list[Tensor | None]:
    """Return the rows of the training and the test split; None for all rows in their order."""
    if hold_out is None:
        return [None, torch.empty(0, dtype=torch.int64)]
    groups = None if train.groups is None else group_numbers(train.groups, len(train))
    return [*hold_out.rows(len(train), train.where, labels, groups)]


def _number_warnings(train: Part, rows: Tensor | None) -> list[str]:
    targets = MappedRows(train.y.array, train.y.convert, (train.width,))
    order = torch.arange(len(train)) if rows is None else rows
    step = max(1, CHUNK // train.width)
    return number_warnings(lambda: map(targets.take, order.split(step)), train.y.name) if len(order) > 1 else []


def _split(part: Part, arrays: Mapping[str, MappedArray], number: int) -> MappedSplit:
    rows, labels = arrays.get(f"rows {number}"), arrays.get(f"labels {number}")
    order = MappedRows(rows, np.asarray, ()) if rows is not None else None
    x = MappedRows(part.x.array, part.x.convert, part.input_shape, order)
    if labels is not None:
        return MappedSplit(x, MappedRows(labels, np.asarray, ()))
    return MappedSplit(x, MappedRows(part.y.array, part.y.convert, (part.width,), order))

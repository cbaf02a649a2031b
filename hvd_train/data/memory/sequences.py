"""Sequences of unequal length in one mapped array, and splits that pad them to batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.base import Dataset
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.node import Node
from hvd_train.data.memory.once import once
from hvd_train.data.memory.rows import MappedRows
from hvd_train.data.spec import DataSpec
from hvd_train.data.target_warnings import target_warnings
from hvd_train.data.value_checks import CHUNK, Array
from hvd_train.errors import UserError

KIND = "sequences"
"""The kind of new inputs, and the key of the statistics in `data.json`."""
Take = Callable[[Tensor], Tensor]
"""Returns the rows of an array at positions (int64)."""


class Scale(NamedTuple):
    """The mean of each feature, and its standard deviation, or 1 for a constant one; float32."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def fit(cls, split: SequenceSplit, node: Node) -> Scale:
        """Return the scale of all steps of `split`, which one rank of the host computes; collective."""
        found = once(node, partial(_moments, split))[1]
        return cls(torch.tensor(found["mean"]), torch.tensor(found["deviation"]))

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Scale | None:
        """Return the scale in `data.json`; None if the features stay as they are."""
        found = document.get(KIND)
        return None if found is None else cls(torch.tensor(found["mean"]), torch.tensor(found["deviation"]))

    @property
    def document(self) -> dict[str, list[float]]:
        return {"mean": self.mean.tolist(), "deviation": self.deviation.tolist()}

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


@dataclass(frozen=True)
class SequenceSplit:
    """Batches {x, mask, y} of sequences. Row `starts[i]` of `steps` is the first step of sequence i."""

    steps: MappedRows
    starts: Tensor
    lengths: Tensor
    """The steps of each sequence, int64 `(n,)`."""
    y: Tensor
    scale: Scale | None = None
    groups: Tensor | None = None
    """The group of each sequence, int64 `(n,)`."""

    @property
    def has_classes(self) -> bool:
        return self.y.dtype == torch.int64

    @property
    def labels(self) -> Tensor:
        return self.y if self.has_classes else torch.tensor(-1).expand(len(self))

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        x, mask = padded(self._steps, self.starts[indices], self.lengths[indices])
        return {"x": x, "mask": mask, "y": self.y[indices]}

    def selected(self, indices: Tensor) -> SequenceSplit:
        """Return the sequences at `indices`."""
        groups = None if self.groups is None else self.groups[indices]
        of = self.starts[indices], self.lengths[indices], self.y[indices]
        return SequenceSplit(self.steps, *of, self.scale, groups)

    def _steps(self, rows: Tensor) -> Tensor:
        taken = self.steps.take(rows)
        return taken if self.scale is None else self.scale(taken)


def _moments(split: SequenceSplit) -> tuple[dict[str, Array], dict[str, list[float]]]:
    """Return no arrays, and the mean and the deviation of each feature, in two passes over the steps."""
    total, squares, steps = torch.zeros(()), torch.zeros(()), int(split.lengths.sum())
    for part in _pieces(split):
        total = total + part.double().sum(0)
    for part in _pieces(split):
        squares = squares + (part.double() - total / steps).square().sum(0)
    deviation = (squares / steps).sqrt()
    deviation[deviation == 0] = 1
    return {}, {"mean": (total / steps).tolist(), "deviation": deviation.tolist()}


def _pieces(split: SequenceSplit) -> Iterator[Tensor]:
    """Yield all steps of the sequences, a bounded number of values at a time."""
    longest = int(split.lengths.max()) * split.steps.shape[0]
    for indices in torch.arange(len(split)).split(max(1, CHUNK // longest)):
        batch = split.batch(indices)
        yield batch["x"][batch["mask"]]


def padded(take: Take, starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return sequences `(n, longest, features)` that end with zeros, and their mask `(n, longest)`.

    `take` returns the rows of all steps at positions; sequence i has `lengths[i]` from `starts[i]` on.
    """
    at = torch.arange(max(lengths.tolist(), default=0))
    mask = at < lengths[:, None]
    steps = take((starts[:, None] + at)[mask])
    x = steps.new_zeros(*mask.shape, *steps.shape[1:])
    x[mask] = steps
    return x, mask


def starts_of(lengths: Array, name: str, steps: int) -> tuple[Tensor, Tensor]:
    """Return the first step of each sequence, and its length, int64.

    Raise UserError for lengths that are no integers, for a sequence without steps, and for lengths
    that do not add up to `steps`.
    """
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise UserError(f"{name} is {lengths.dtype} of shape {lengths.shape}, expected one integer a sequence")
    if not len(lengths):
        raise UserError(f"{name}: empty, expected at least one sequence")
    if lengths.min() < 1:
        first = int((lengths < 1).argmax())
        raise UserError(f"{name} at [{first}]: a sequence of {lengths[first]} steps, expected at least one")
    found = torch.from_numpy(lengths.astype(np.int64))
    ends = found.cumsum(0)
    if int(ends[-1]) != steps:
        raise UserError(f"{name}: {int(ends[-1])} steps in all, expected {steps}, the rows of the array of steps")
    return ends - found, found


class Part(NamedTuple):
    """All sequences of a file."""

    split: SequenceSplit
    where: str
    """The file in messages."""
    name: str
    """The targets in messages."""
    facts: dict[str, str]
    """How new inputs are read, as JSON."""
    warnings: tuple[str, ...]

    @property
    def kind(self) -> str:
        targets = "classes" if self.split.has_classes else f"{self.split.y.shape[1]} target values"
        return f"sequences of {self.split.steps.shape[0]} features with {targets}"


def dataset(
    train: Part,
    tests: Mapping[str, Part],
    hold_out: HoldOut,
    node: Node,
    fitted: Fitted | None,
    *,
    standardise: bool,
) -> Dataset:
    """Return a data set of sequences; collective.

    The first of `tests` is the test split. Without `tests`, a random part of `train` is held out.
    `fitted` has the longest sequence and the scale of the training samples of a run.

    Raise UserError for test samples of other features or targets, and if no training samples are left.
    """
    for part in tests.values():
        if part.kind != train.kind:
            raise UserError(f"{part.where}: {part.kind}, expected {train.kind} as in the training data")
    splits = [train.split, *(part.split for part in tests.values())] if tests else _held_out(train, hold_out)
    if fitted is None:
        scale = Scale.fit(splits[0], node) if standardise else None
        longest = max(int(split.lengths.max()) for split in splits if len(split))
    else:
        scale, longest = Scale.of(fitted), fitted["input_shape"][0]
    splits = [replace(split, scale=scale) for split in splits]
    spec = _spec(train, splits, longest)
    warnings = [warning for part in (train, *tests.values()) for warning in part.warnings]
    if fitted is None:
        warnings += target_warnings(splits[0].y, splits[1].y, spec.outputs, train.name)
    others = dict(zip(list(tests)[1:], splits[2:], strict=True))
    document = {} if scale is None else {KIND: scale.document}
    return Dataset(splits[0], splits[1], spec, tuple(warnings), document, others, input=train.facts)


def _held_out(train: Part, hold_out: HoldOut) -> list[SequenceSplit]:
    """Return the training and the test split."""
    split = train.split
    rows = hold_out.rows(len(split), train.where, split.y if split.has_classes else None, split.groups)
    return [split.selected(of) for of in rows]


def _spec(train: Part, splits: list[SequenceSplit], longest: int) -> DataSpec:
    shape = (longest, *train.split.steps.shape)
    if not train.split.has_classes:
        return DataSpec(shape, train.split.y.shape[1], "regression")
    return DataSpec(shape, max(int(split.y.max()) for split in splits if len(split)) + 1, "classification")

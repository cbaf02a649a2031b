"""The contract of a data source: what it hands to the trainer, and what a model may know about it.

A source is a file in this package whose `create(**options)` returns a `Dataset`; options that are paths take
text. It raises UserError, naming the file, for data that is missing, empty or malformed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from hvd_train.spec import DataSpec


class Split(Protocol):
    """Samples by position."""

    @property
    def labels(self) -> Tensor:
        """What partitioners look at: int64, one a sample, -1 where there are no classes."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the samples at `indices` (int64), stacked along dimension 0."""


@dataclass(frozen=True)
class Dataset:
    """A training split, a held-out split (of length 0 where there is none) and their common description.

    `warnings` are sentences for the user. `preprocessing` is JSON: what was fitted on the training samples, and what else
    turns a row of the source into an input; it is saved as `data.json` in the run folder.
    """

    train: Split
    test: Split
    spec: DataSpec
    warnings: tuple[str, ...] = ()
    preprocessing: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorSplit:
    """A split held in memory: `x[i]` is an input, `y[i]` its target, an int64 class or `(k,)` floats."""

    x: Tensor
    y: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x.index_select(0, indices), self.y.index_select(0, indices)


def held_out(x: Tensor, y: Tensor, fraction: float, seed: int) -> tuple[TensorSplit, TensorSplit]:
    """Split samples at random, the same way for the same seed, into training and test parts."""
    train, test = held_out_rows(len(x), fraction, seed)
    return tensor_split(x[train], y[train]), tensor_split(x[test], y[test])


def held_out_rows(samples: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of training and test samples, chosen at random, the same way for the same seed."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    cut = samples - round(samples * fraction)
    return order[:cut], order[cut:]


def tensor_split(x: Tensor, y: Tensor) -> TensorSplit:
    """A split whose labels are its targets where those are classes."""
    is_class = y.dtype == torch.int64 and y.dim() == 1
    return TensorSplit(x, y, y if is_class else torch.full((len(x),), -1))


def describe(x: Tensor, y: Tensor) -> DataSpec:
    """The description of samples `x` with targets `y`: int64 targets are classes, floats a regression."""
    if y.dtype == torch.int64:
        return DataSpec(tuple(x.shape[1:]), int(y.max()) + 1, "classification")
    return DataSpec(tuple(x.shape[1:]), y[0].numel(), "regression")

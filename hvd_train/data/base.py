"""The contract of a data source: the samples that it returns, and what a model may know about them.

A source is a file in `hvd_train/data/sources` whose `create(**options)` returns a `Dataset`. An
option that is a path takes text. `create` raises UserError, which names the file, for data that is
missing, empty or malformed.

A sample is any nesting of dicts, tuples and lists of tensors, arrays, numbers and strings. A batch
is the same nesting of stacked tensors. The samples of a source are one of

    Split     arrays: a batch is an index into them
    Items     samples that are made one at a time, such as images that are decoded
    Stream    samples in an order of their own, without positions and perhaps without an end

A `Split` and `Items` may have two more attributes. `groups` (int64, `(n,)`) has the client of each
sample, such as its user or speaker, for the partition `by_group`. `seeded(seed)` returns the samples
drawn with the seed of the run.

`Items` and a `Stream` that already know of a damaged sample have its message in `damage`, which ends
the run at its start unless damaged samples are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hvd_train.data.spec import DataSpec


@runtime_checkable
class Split(Protocol):
    """Samples by position, in batches."""

    @property
    def labels(self) -> Tensor:
        """The class of each sample for partitioners, int64 `(n,)`; -1 without classes."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Any:
        """Return the batch of the samples at `indices` (int64), stacked along dimension 0."""


@runtime_checkable
class Items(Protocol):
    """Samples by position, one at a time. They are picklable, for worker processes."""

    @property
    def name(self) -> str:
        """The name of the data in messages."""

    @property
    def labels(self) -> Tensor:
        """The class of each sample for partitioners, int64 `(n,)`; -1 without classes."""

    def __len__(self) -> int: ...

    def item(self, index: int) -> Any:
        """Return the sample at `index`; UserError, which names the file, for a damaged one.

        For `data.bucket`, items may have an attribute `lengths`, one for each sample. Without it
        every sample is made once at the start.
        """


@runtime_checkable
class Stream(Protocol):
    """Samples in an order of their own."""

    @property
    def name(self) -> str:
        """The name of the data in messages."""

    def raw(self, part: int, parts: int, epoch: int) -> Iterator[Any]:
        """Return one of `parts` disjoint parts of the samples of `epoch`, not decoded yet.

        Equal arguments give equal samples. The values are picklable. Raise UserError at once if
        there are too many parts.
        """

    def sample(self, raw: Any) -> Any:
        """Return the sample that `raw` decodes to; UserError, which names it, for a damaged one."""


@dataclass(frozen=True)
class Dataset:
    """Training samples, held-out samples, which may be none, and the description of both.

    `data.load.load` makes a `Split` of what are `Items` here.
    """

    train: Any
    """A `Split`, `Items` or a `Stream`."""
    test: Any
    """A `Split` or `Items`: the samples that evaluations use."""
    spec: DataSpec
    warnings: tuple[str, ...] = ()
    """Sentences for the user."""
    preprocessing: dict[str, Any] = field(default_factory=dict)
    """How a row of the source becomes an input, as JSON for `data.json` of the run folder."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Further held-out samples by name. The names of their metrics begin with it."""
    missing: Mapping[str, float] = field(default_factory=dict)
    """The share of missing values in each column of a table, before they are filled in or dropped."""
    input: Mapping[str, Any] = field(default_factory=dict)
    """The kind of new inputs (a file of `trained/inputs`) and further facts about them, as JSON."""
    pad: Mapping[str, Any] = field(default_factory=dict)
    """Options of the collate function `pad`, which is then the default in place of `stack`."""


@dataclass(frozen=True)
class TensorSplit:
    """A split in memory: `x[i]` is an input, and `y[i]` its target, a class (int64) or `(k,)` floats."""

    x: Tensor
    y: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x.index_select(0, indices), self.y.index_select(0, indices)


def tensor_split(x: Tensor, y: Tensor) -> TensorSplit:
    """Return a split whose labels are its targets if the targets are classes."""
    is_class = y.dtype == torch.int64 and y.dim() == 1
    return TensorSplit(x, y, y if is_class else torch.full((len(x),), -1))


def describe(x: Tensor, y: Tensor) -> DataSpec:
    """Return the description of `x` and `y`. Targets of int64 are classes, floats a regression."""
    if y.dtype == torch.int64:
        return DataSpec(tuple(x.shape[1:]), int(y.max()) + 1, "classification")
    return DataSpec(tuple(x.shape[1:]), y[0].numel(), "regression")

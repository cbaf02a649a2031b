"""The contract of a partitioner: the samples of a worker in one epoch, and its batch size.

A partitioner is a file in `hvd_train/data/partitions` whose `create(**options)` returns a
`Partitioner`. It is pure: equal arguments give equal shares on every rank. The shares of all
workers are disjoint and together cover the data, except that `balanced` re-samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from hvd_train.data.partitioning.order import Array


class WorkerSamples(NamedTuple):
    """The samples of one worker in one epoch."""

    indices: Tensor
    """Positions (int64) of the samples, in the order of training."""
    batch_size: int
    """Samples in a micro-batch of the worker."""


@runtime_checkable
class Partitioner(Protocol):
    """Divides samples among workers."""

    @property
    def fixed(self) -> bool:
        """True if a worker has the same samples in every epoch."""

    @property
    def adaptive(self) -> bool:
        """True if shares follow the measured speeds of the workers."""

    def check(self, workers: int) -> None:
        """Raise UserError if the options do not fit the number of workers at the start of a run."""

    def share(
        self,
        labels: Tensor,
        worker: int,
        workers: int,
        *,
        batch_size: int,
        epoch: int,
        seed: int,
        speeds: Sequence[float] = (),
    ) -> WorkerSamples:
        """Return the share of `worker` among `workers` in `epoch`.

        `labels` has one entry for each sample, -1 without classes. `batch_size` is the mean batch
        size of all workers. `speeds` has the relative speed of each worker, and is empty if nothing
        is measured. Raise UserError if the samples cannot be divided in this way.
        """


Arrange = Callable[[Array, int, int], Array]
"""From the order of an epoch, the size of a global batch and the epoch: the order of training."""


@runtime_checkable
class Arrangeable(Protocol):
    """A partitioner that orders all samples and then deals them, so that their order can be changed."""

    def arranged(self, arrange: Arrange) -> Partitioner:
        """Return a partitioner that deals what `arrange` makes of the order."""


@runtime_checkable
class OfGroups(Protocol):
    """A partitioner that divides samples by the attribute `groups` of their split."""

    def of_groups(self, groups: Tensor) -> Partitioner:
        """Return the partitioner of samples with these groups (int64), one for each sample."""


def for_split(partitioner: Partitioner, split: Any) -> Partitioner:
    """Return `partitioner` with the groups of `split`, if it takes any and there are some."""
    groups = getattr(split, "groups", None)
    return partitioner.of_groups(groups) if isinstance(partitioner, OfGroups) and groups is not None else partitioner


Order = Callable[[Tensor, int, int], Array]
"""From labels, epoch and seed: the positions of all samples in the order of the epoch."""


@dataclass(frozen=True)
class Interleaved:
    """A partitioner that deals the samples of `order` in turn, so global batches do not depend on np."""

    order: Order
    fixed: bool = False
    arrange: Arrange | None = None
    adaptive: ClassVar[bool] = False

    def arranged(self, arrange: Arrange) -> Interleaved:
        return replace(self, arrange=arrange)

    def check(self, workers: int) -> None:
        """Accept any number of workers."""

    def share(
        self,
        labels: Tensor,
        worker: int,
        workers: int,
        *,
        batch_size: int,
        epoch: int,
        seed: int,
        speeds: Sequence[float] = (),
    ) -> WorkerSamples:
        order = self.order(labels, epoch, seed)
        if self.arrange is not None:
            order = self.arrange(order, batch_size * workers, epoch)
        return WorkerSamples(torch.from_numpy(order[worker::workers].copy()), batch_size)


Indices = Callable[[Tensor, int, int, int, int], Tensor]
"""From labels, worker, number of workers, epoch and seed: the positions of the worker's samples."""


@dataclass(frozen=True)
class EqualBatches:
    """A partitioner that gives every worker the same batch size. `indices` divides the samples."""

    indices: Indices
    fixed: bool = False
    adaptive: ClassVar[bool] = False

    def check(self, workers: int) -> None:
        """Accept any number of workers."""

    def share(
        self,
        labels: Tensor,
        worker: int,
        workers: int,
        *,
        batch_size: int,
        epoch: int,
        seed: int,
        speeds: Sequence[float] = (),
    ) -> WorkerSamples:
        return WorkerSamples(self.indices(labels, worker, workers, epoch, seed), batch_size)

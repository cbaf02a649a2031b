"""Keeps the samples of a group, such as a user or a speaker, on one worker; fixed for the run."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.partitioning.base import EqualBatches, WorkerSamples
from hvd_train.data.partitioning.classes import fixed
from hvd_train.data.partitioning.order import Array, grouped
from hvd_train.errors import UserError


def split(groups: Array, workers: int, generator: np.random.Generator) -> list[Array]:
    """Give each group, the largest first, to the worker with the fewest samples so far.

    No worker then has more than 4/3 of the least possible maximum (Graham, SIAM J. Appl. Math. 17(2),
    1969). Raise UserError if there are fewer groups than workers.
    """
    sizes = np.bincount(groups)
    if len(sizes) < workers:
        raise UserError(
            f"data.partition: by_group keeps each group on one worker, and there are {len(sizes)} groups for {workers} "
            "workers; start fewer ranks, or take random"
        )
    order = generator.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    loads, owners = [(0, worker) for worker in range(workers)], np.empty(len(sizes), np.int64)
    for group in order.tolist():
        load, worker = loads[0]
        heapq.heapreplace(loads, (load + int(sizes[group]), worker))
        owners[group] = worker
    of_samples = owners[groups]
    return np.split(grouped(of_samples), np.cumsum(np.bincount(of_samples, minlength=workers))[:-1])


@dataclass(frozen=True)
class ByGroup:
    """Divides samples by `groups`, which are numbered from 0 (int64)."""

    groups: Tensor | None = None
    divided: EqualBatches = field(default_factory=lambda: fixed(split))
    fixed: ClassVar[bool] = True
    adaptive: ClassVar[bool] = False

    def of_groups(self, groups: Tensor) -> ByGroup:
        """Return the partitioner of samples with these groups, any integers."""
        return ByGroup(torch.unique(groups, return_inverse=True)[1])

    def check(self, workers: int) -> None:
        """Raise UserError for samples without groups."""
        if self.groups is None:
            raise UserError(
                "data.partition: by_group divides samples by user or speaker, and the samples here have no groups; take "
                "random, or a data source that has them, such as ratings"
            )

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
        assert self.groups is not None
        return self.divided.share(self.groups, worker, workers, batch_size=batch_size, epoch=epoch, seed=seed)


def create() -> ByGroup:
    return ByGroup()

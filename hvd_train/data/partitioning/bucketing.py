"""Length bucketing: batches of samples of similar length, so that little of them is padding.

The global order of an epoch is bucketed before it is dealt to the workers. So the global batches of
N workers are those of one process. Partitions that have no global order, such as `contiguous`, are
bucketed within the share of each worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.partitioning.base import Arrangeable, Partitioner, WorkerSamples
from hvd_train.data.partitioning.order import Array, bucketed

_ORDER = 2**32 - 2
"""Follows seed and epoch in the seed of the order of batches."""


@dataclass(frozen=True)
class Buckets:
    """Arranges the samples of an epoch by `lengths` in windows of `window` steps."""

    lengths: Array
    window: int
    accumulate: int
    seed: int

    def __call__(self, order: Array, batch: int, epoch: int, worker: int = 0) -> Array:
        """Return `order` arranged; `batch` samples make a micro-batch of all workers that share it."""
        generator = np.random.default_rng([self.seed, epoch, _ORDER, worker])
        return bucketed(order, self.lengths, batch=batch * self.accumulate, window=self.window, generator=generator)

    def of(self, partitioner: Partitioner) -> Partitioner:
        """Return `partitioner` with arranged samples."""
        return partitioner.arranged(self) if isinstance(partitioner, Arrangeable) else WithinShares(partitioner, self)


@dataclass(frozen=True)
class WithinShares:
    """Arranges the share of each worker that `partitioner` makes."""

    partitioner: Partitioner
    buckets: Buckets

    @property
    def fixed(self) -> bool:
        return self.partitioner.fixed

    @property
    def adaptive(self) -> bool:
        return self.partitioner.adaptive

    def check(self, workers: int) -> None:
        self.partitioner.check(workers)

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
        own = self.partitioner.share(
            labels, worker, workers, batch_size=batch_size, epoch=epoch, seed=seed, speeds=speeds
        )
        return own._replace(
            indices=torch.from_numpy(self.buckets(own.indices.numpy(), own.batch_size, epoch, worker + 1))
        )

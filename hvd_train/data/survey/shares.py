"""The classes of each worker's samples in the first epoch."""

from __future__ import annotations

from typing import Any

from hvd_train.config.schema import Config
from hvd_train.data.partitioning.base import Partitioner, for_split

Histogram = dict[int, int]
"""The number of samples of each class, -1 for samples without a class."""


def shares(train: Any, config: Config, workers: int) -> list[Histogram]:
    """Return the samples of each class of each worker.

    UserError if they cannot be divided.
    """
    labels, size, seed = train.labels, config.data.batch_size, config.seed
    partitioner = for_split(config.data.partition.create(expected=Partitioner), train)
    partitioner.check(workers)

    def of(worker: int) -> Histogram:
        indices = partitioner.share(labels, worker, workers, batch_size=size, epoch=0, seed=seed).indices
        kinds, counts = labels[indices].unique(return_counts=True)
        return dict(zip(kinds.tolist(), counts.tolist(), strict=True))

    return [of(worker) for worker in range(workers)]

"""Partitioners that divide samples by their classes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.partitioning.base import EqualBatches
from hvd_train.data.partitioning.order import Array, grouped
from hvd_train.errors import UserError

Split = Callable[[Array, int, np.random.Generator], list[Array]]
"""From all classes, the number of workers and a generator: the positions of each worker."""

_WHOLE_RUN = 2**32 - 1
"""Takes the place of the epoch in the seed of a split that is the same in every epoch."""


def fixed(split: Split) -> EqualBatches:
    """Return a partitioner whose workers keep their samples for the whole run.

    An epoch only changes the order.

    The last split is cached, so that the shares of all workers take one split.
    """

    @functools.lru_cache(maxsize=1)
    def shards(labels: Tensor, workers: int, seed: int) -> list[Array]:
        return split(classes(labels), workers, np.random.default_rng([seed, _WHOLE_RUN]))

    def indices(labels: Tensor, worker: int, workers: int, epoch: int, seed: int) -> Tensor:
        own = shards(labels, workers, seed)[worker]
        return torch.from_numpy(own[np.random.default_rng([seed, epoch, worker]).permutation(len(own))])

    return EqualBatches(indices, fixed=True)


def classes(labels: Tensor) -> Array:
    """Return `labels` as classes 0, 1, 2, ...; raise UserError if the samples have no classes."""
    numbers: Array = labels.numpy()
    if numbers.min(initial=0) < 0:
        raise UserError(
            "data.partition: this partition divides samples by class, and the data has no classes; "
            "use random, round_robin, contiguous or weighted"
        )
    return numbers


def by_class(labels: Array, generator: np.random.Generator) -> Array:
    """Return all positions, grouped by class and in random order within a class."""
    order = generator.permutation(len(labels))
    return order[grouped(labels[order])]

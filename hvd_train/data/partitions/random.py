"""Shuffles the samples in every epoch and distributes them in turn; batches do not depend on np."""

from __future__ import annotations

from torch import Tensor

from hvd_train.data.partitioning.base import Interleaved
from hvd_train.data.partitioning.order import Array, shuffled


def order(labels: Tensor, epoch: int, seed: int) -> Array:
    """Return the permutation of the epoch."""
    return shuffled(len(labels), epoch=epoch, seed=seed)


def create() -> Interleaved:
    return Interleaved(order)

"""Distributes the samples in turn in natural order; global batches do not depend on np."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from hvd_train.data.partitioning.base import Interleaved
from hvd_train.data.partitioning.order import Array


def order(labels: Tensor, epoch: int, seed: int) -> Array:
    """Return the natural order in every epoch."""
    return np.arange(len(labels))


def create() -> Interleaved:
    return Interleaved(order, fixed=True)

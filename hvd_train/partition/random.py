"""Samples shuffled anew every epoch, then dealt out: global batches do not depend on the number of ranks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hvd_train.partition.base import Partitioner


class Random:
    """One permutation of all samples for each seed and epoch, shared by the ranks and dealt out in turn."""

    def indices(self, labels: Tensor, rank: int, size: int, *, epoch: int, seed: int) -> Tensor:
        order = np.random.default_rng([seed, epoch]).permutation(len(labels))
        return torch.from_numpy(order)[rank::size]


def create() -> Partitioner:
    return Random()

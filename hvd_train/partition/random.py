"""Samples shuffled anew every epoch, then dealt out: global batches do not depend on the number of ranks."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hvd_train.partition._order import shuffled
from hvd_train.partition.base import Partitioner


class Random:
    """One permutation of all samples for each seed and epoch, shared by the ranks and dealt out in turn."""

    keeps: ClassVar[bool] = False

    def indices(self, labels: Tensor, rank: int, size: int, *, epoch: int, seed: int) -> Tensor:
        return torch.from_numpy(shuffled(len(labels), epoch=epoch, seed=seed)[rank::size].copy())


def create() -> Partitioner:
    return Random()

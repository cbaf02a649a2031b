"""Equal blocks of neighbouring samples, shuffled anew every epoch: a rank keeps to its own block."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hvd_train.partition.base import Partitioner


class Contiguous:
    """Blocks whose lengths differ by one at most, the longer ones on the first ranks."""

    keeps: ClassVar[bool] = True

    def indices(self, labels: Tensor, rank: int, size: int, *, epoch: int, seed: int) -> Tensor:
        block = torch.tensor_split(torch.arange(len(labels)), size)[rank]
        return block[np.random.default_rng([seed, epoch, rank]).permutation(len(block))]


def create() -> Partitioner:
    return Contiguous()

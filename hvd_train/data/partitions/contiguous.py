"""Gives each worker a fixed block of neighbouring samples, shuffled in every epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.partitioning.base import EqualBatches


def indices(labels: Tensor, worker: int, workers: int, epoch: int, seed: int) -> Tensor:
    """Return a block in random order.

    The lengths of two blocks differ by at most one; the first workers have the longer.
    """
    block = torch.tensor_split(torch.arange(len(labels)), workers)[worker]
    return block[np.random.default_rng([seed, epoch, worker]).permutation(len(block))]


def create() -> EqualBatches:
    return EqualBatches(indices, fixed=True)

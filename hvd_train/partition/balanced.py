"""Classes equally often in every epoch, rare ones repeated and frequent ones thinned out (re-sampling), then dealt out."""

from __future__ import annotations

import functools
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hvd_train.partition._apportion import apportion
from hvd_train.partition._classes import by_class, classes
from hvd_train.partition._order import Array
from hvd_train.partition.base import Partitioner


class Balanced:
    """As many draws as there are samples, made and shuffled anew every epoch, shared by the ranks and dealt out in turn.

    Classes differ by one draw at most, and so do the samples of a class.
    """

    keeps: ClassVar[bool] = False

    def __init__(self) -> None:
        self._draws = functools.lru_cache(maxsize=1)(_draws)

    def indices(self, labels: Tensor, rank: int, size: int, *, epoch: int, seed: int) -> Tensor:
        return torch.from_numpy(self._draws(labels, epoch, seed)[rank::size].copy())


def _draws(labels: Tensor, epoch: int, seed: int) -> Array:
    generator = np.random.default_rng([seed, epoch])
    counts = np.bincount(classes(labels))
    members = np.split(by_class(classes(labels), generator), np.cumsum(counts[counts > 0])[:-1])
    times = generator.permutation(apportion(len(labels), [1] * len(members)))
    drawn = [np.resize(m, n) for m, n in zip(members, times, strict=True)]
    return generator.permutation(np.concatenate(drawn))


def create() -> Partitioner:
    return Balanced()

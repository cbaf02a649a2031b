"""Partitioners that look at classes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hvd_train.errors import UserError
from hvd_train.partition._order import Array, grouped

Split = Callable[[Array, int, np.random.Generator], list[Array]]
"""From the classes of all samples, the number of workers and a generator: the positions that each worker has."""

_OF_THE_RUN = 2**32 - 1
"""In the place of an epoch, the seed of what no epoch changes."""


class Fixed:
    """The shards of a `Split`, which hold for the whole run: an epoch changes only the order of each.

    The last split is remembered, so that the shards of all workers take one.
    """

    keeps: ClassVar[bool] = True

    def __init__(self, split: Split) -> None:
        self._split = split
        self._shards = functools.lru_cache(maxsize=1)(self._dealt)

    def indices(self, labels: Tensor, rank: int, size: int, *, epoch: int, seed: int) -> Tensor:
        mine = self._shards(labels, size, seed)[rank]
        order = np.random.default_rng([seed, epoch, rank]).permutation(len(mine))
        return torch.from_numpy(mine[order])

    def _dealt(self, labels: Tensor, size: int, seed: int) -> list[Array]:
        return self._split(classes(labels), size, np.random.default_rng([seed, _OF_THE_RUN]))


def classes(labels: Tensor) -> Array:
    """`labels` as classes 0, 1, 2, ...; UserError where samples have none."""
    found: Array = labels.numpy()
    if found.min(initial=0) < 0:
        raise UserError(
            "data.partition: it deals samples by class, and these have none; use random, round_robin, contiguous or weighted"
        )
    return found


def by_class(labels: Array, generator: np.random.Generator) -> Array:
    """All positions, those of a class together and in random order."""
    order = generator.permutation(len(labels))
    return order[grouped(labels[order])]

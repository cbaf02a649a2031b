"""Draws every class equally often in each epoch (re-sampling).

Rare classes are repeated, and frequent classes are thinned out.
"""

from __future__ import annotations

import functools

import numpy as np
from torch import Tensor

from hvd_train.data.partitioning.apportion import apportion
from hvd_train.data.partitioning.base import Interleaved
from hvd_train.data.partitioning.classes import by_class, classes
from hvd_train.data.partitioning.order import Array


def draw(labels: Tensor, epoch: int, seed: int) -> Array:
    """Return as many positions as there are samples, newly drawn and shuffled for each epoch.

    The numbers of draws of two classes differ by at most one, and so do those of two samples of a
    class.
    """
    generator = np.random.default_rng([seed, epoch])
    counts = np.bincount(classes(labels))
    members = np.split(by_class(classes(labels), generator), np.cumsum(counts[counts > 0])[:-1])
    times = generator.permutation(apportion(len(labels), [1] * len(members)))
    drawn = [np.resize(m, n) for m, n in zip(members, times, strict=True)]
    return generator.permutation(np.concatenate(drawn))


def create() -> Interleaved:
    return Interleaved(functools.lru_cache(maxsize=1)(draw))

"""The order of samples in an epoch, before they are dealt out."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@functools.lru_cache(maxsize=1)
def shuffled(samples: int, *, epoch: int, seed: int) -> Array:
    """All positions, in one order for each seed and epoch; the last answer is remembered, so that all workers take one."""
    order = np.random.default_rng([seed, epoch]).permutation(samples)
    order.flags.writeable = False
    return order


def grouped(keys: Array) -> Array:
    """Positions sorted by key, those of a key in their order; in linear time for keys below 2**16."""
    narrow = keys.astype(np.uint16) if keys.max(initial=0) < 2**16 else keys
    return np.argsort(narrow, kind="stable")

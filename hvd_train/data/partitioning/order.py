"""The order of samples in an epoch, before it is divided among workers."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@functools.lru_cache(maxsize=1)
def shuffled(samples: int, *, epoch: int, seed: int) -> Array:
    """Return a permutation of all positions for the seed and the epoch.

    The last result is cached, so that the shares of all workers take one permutation.
    """
    order = np.random.default_rng([seed, epoch]).permutation(samples)
    order.flags.writeable = False
    return order


def bucketed(order: Array, lengths: Array, *, batch: int, window: int, generator: np.random.Generator) -> Array:
    """Return `order` with samples of similar length together in each batch of `batch` samples.

    Each window of `window` batches is sorted by length (stable), and all batches are shuffled. The
    samples of a shorter last batch stay where they are. `lengths` has one entry for each sample of
    the data set.
    """
    full = len(order) // batch
    whole, rest = np.split(order, [full * batch])
    windows = np.arange(len(whole)) // (batch * window)
    batches = whole[np.lexsort((lengths[whole], windows))].reshape(full, batch)
    return np.concatenate([batches[generator.permutation(full)].reshape(-1), rest])


def grouped(keys: Array) -> Array:
    """Return positions sorted by key, stable within a key; in linear time for keys below 2**16."""
    narrow = keys.astype(np.uint16) if keys.max(initial=0) < 2**16 else keys
    return np.argsort(narrow, kind="stable")

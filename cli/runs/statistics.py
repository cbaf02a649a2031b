"""Statistics of the scores of several seeds or episodes, as Agarwal et al. recommend (arXiv 2108.13264)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95


def interquartile_mean(values: ArrayLike) -> Numbers:
    """Return the mean over the last axis without the lowest and the highest quarter of the values.

    A quarter may end within a value, which then counts in part.
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=-1)
    number = ordered.shape[-1]
    places, cut = np.arange(number), number / 4
    weights = np.clip(np.minimum(places + 1, number - cut) - np.maximum(places, cut), 0, None)
    means: Numbers = ordered @ weights / weights.sum()
    return means


def interval(strata: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the 95 % percentile interval of the stratified bootstrap for the interquartile mean of all values.

    The values of each stratum, such as the seeds of one task, are resampled among themselves.
    """
    generator = np.random.default_rng(0)
    resampled = [_resampled(np.asarray(values, np.float64), generator) for values in strata]
    found = interquartile_mean(np.concatenate(resampled, axis=-1))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resampled(values: Numbers, generator: np.random.Generator) -> Numbers:
    """Return `RESAMPLES` rows of as many values, drawn with replacement."""
    return values[generator.integers(len(values), size=(RESAMPLES, len(values)))]

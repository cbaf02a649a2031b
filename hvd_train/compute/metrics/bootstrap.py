"""Intervals of statistics by resampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
COVERAGE = 0.95


def interval(values: Sequence[float], weights: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the sum of `weights` and the sorted `values`.

    The percentile method (Efron 1979) for independent values. Equal values give equal intervals.
    """
    draw, known, weighed = np.random.default_rng(seed), np.asarray(values, np.float64), np.asarray(weights, np.float64)
    found = [float(np.sort(draw.choice(known, len(known))) @ weighed) for _ in range(RESAMPLES)]
    low, high = np.quantile(found, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)

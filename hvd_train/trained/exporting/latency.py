"""Latency of exports and the original, measured in turn."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Call = Callable[[], object]
BATCHES = (1, 32)
WARM_UP = 3
FEWEST, MOST = 5, 1000
"""Calls of each candidate that are measured."""


@dataclass(frozen=True)
class Latency:
    """The time of a call, in seconds."""

    batch: int
    threads: int
    p50: float
    p95: float


def cases() -> list[tuple[int, int]]:
    """Return the sizes of batches, each with one thread and with all that this process may use."""
    return [(batch, threads) for batch in BATCHES for threads in sorted({1, cores()})]


def cores() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def measure(calls: Mapping[str, Call], seconds: float) -> dict[str, list[float]]:
    """Return the times of the calls by label, in seconds.

    The calls take turns, so that a change of the machine's load meets all of them. They end after
    about `seconds`.
    """
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    times: dict[str, list[float]] = {label: [] for label in calls}
    end = time.perf_counter() + seconds
    for number in range(MOST):
        if number >= FEWEST and time.perf_counter() > end:
            break
        for label, call in calls.items():
            start = time.perf_counter()
            call()
            times[label].append(time.perf_counter() - start)
    return times


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def of_times(values: Sequence[float], batch: int, threads: int) -> Latency:
    """Return the latency that measured times give."""
    return Latency(batch, threads, percentile(values, 0.5), percentile(values, 0.95))

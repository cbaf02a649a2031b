"""Means of what an agent counts between two records."""

from __future__ import annotations

from collections import defaultdict

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json


class Figures:
    """Sums by name, averaged over all ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, name: str, total: float, count: float = 1) -> None:
        """Add `total`, which is the sum of `count` values."""
        entry = self._sums[name]
        entry[0] += total
        entry[1] += count

    def take(self) -> dict[str, list[float]]:
        """Return the sums and counts by name, and forget them."""
        taken = dict(self._sums)
        self._sums.clear()
        return taken


def means(comm: Communicator, taken: dict[str, list[float]]) -> dict[str, float]:
    """Return the mean of each name over all ranks; collective."""
    total: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for of_rank in gather_json(comm, taken):
        for name, (value, count) in of_rank.items():
            total[name][0] += value
            total[name][1] += count
    return {name: value / count for name, (value, count) in total.items() if count}

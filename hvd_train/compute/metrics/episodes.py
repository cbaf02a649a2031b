"""Returns, lengths and successes of the episodes of an evaluation."""

from __future__ import annotations

import math
from statistics import fmean, median
from typing import Any

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.compute.metrics.meter import Meter, Value
from hvd_train.data.batch import Batch


class EpisodeMeter:
    """Collects one column of the results of episodes (`agents.player`)."""

    def __init__(self, name: str, column: int, higher_is_better: bool | None, *, spread: bool = False) -> None:
        """`spread`: median, interquartile mean and extremes are reported beside the mean."""
        self.name, self.higher_is_better = name, higher_is_better
        self._column, self._spread = column, spread
        self.reset()

    def reset(self) -> None:
        self._values: list[float] = []

    def update(self, outputs: Any, batch: Batch) -> None:
        self._values += [value for value in outputs[:, self._column].tolist() if not math.isnan(value)]

    def compute(self, comm: Communicator) -> dict[str, Value]:
        values = sorted(value for of_rank in gather_json(comm, self._values) for value in of_rank)
        if not values:
            return {}
        found: dict[str, Value] = {self.name: fmean(values)}
        if self._spread:
            more = {"median": median(values), "iqm": interquartile_mean(values), "min": values[0], "max": values[-1]}
            found |= {f"{self.name}_{key}": value for key, value in more.items()}
        return found


def interquartile_mean(values: list[float]) -> float:
    """Return the mean of the sorted `values` without the lowest and the highest quarter of them.

    A quarter may be cut within a value, which then counts in part (Agarwal et al. 2021).
    """
    cut = len(values) / 4
    weights = [max(0.0, min(i + 1, len(values) - cut) - max(i, cut)) for i in range(len(values))]
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)


def episode_meters() -> list[Meter]:
    """Return what evaluations of agents measure."""
    return [
        EpisodeMeter("return", 0, True, spread=True),
        EpisodeMeter("episode_length", 1, None),
        EpisodeMeter("success_rate", 2, True),
    ]

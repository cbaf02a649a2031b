"""The mean loss of training samples between two records, and of held-out samples as a meter."""

from __future__ import annotations

from functools import reduce
from typing import Any

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.compute.loss import LOSS, Loss, Sums, add, sums, units
from hvd_train.compute.metrics.meter import Value
from hvd_train.data.batch import Batch


class RunningLoss:
    """Sums the losses of batches, to be averaged over the units of all ranks."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._sums: Sums = {}
        self._units = 0.0

    def add(self, losses: Sums, number: float) -> None:
        """Add the sums of the losses of this rank over `number` units."""
        self._sums = add(self._sums, losses)
        self._units += number

    def mean(self, comm: Communicator) -> Sums:
        """Return the means over the units of all ranks, by name; collective."""
        of_ranks = gather_json(comm, [self._sums, self._units])
        number = sum(counted for _, counted in of_ranks)
        total: Sums = reduce(add, (part for part, _ in of_ranks))
        return {name: value / (number or 1) for name, value in total.items()}


class MeanLoss:
    """Averages the loss and its parts over their units."""

    name = LOSS
    higher_is_better: bool | None = False

    def __init__(self, loss: Loss) -> None:
        self._loss, self._running = loss, RunningLoss()

    def reset(self) -> None:
        self._running.reset()

    def update(self, outputs: Any, batch: Batch) -> None:
        self._running.add(sums(self._loss(outputs, batch)), units(self._loss, batch))

    def compute(self, comm: Communicator) -> dict[str, Value]:
        return {**self._running.mean(comm)}

"""The share of positions whose largest output is the target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.compute.calling import scores
from hvd_train.compute.metrics.layout import IGNORED, classes_last
from hvd_train.compute.metrics.meter import Value
from hvd_train.data.batch import Batch


class Accuracy:
    """Counts correct positions. It has no value if the targets of a batch are not classes."""

    name = "accuracy"
    higher_is_better: bool | None = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._correct = self._positions = self._without_classes = 0

    def update(self, outputs: Any, batch: Batch) -> None:
        found = correct(scores(outputs), batch.targets)
        if found is None:
            self._without_classes += 1
            return
        self._correct += found[0]
        self._positions += found[1]

    def compute(self, comm: Communicator) -> dict[str, Value]:
        totals = torch.tensor([self._correct, self._positions, self._without_classes], dtype=torch.float64)
        comm.all_reduce_(totals, "sum")
        right, positions, without_classes = totals.tolist()
        return {} if without_classes or not positions else {self.name: right / positions}


def correct(outputs: Any, targets: Any) -> tuple[int, int] | None:
    """Return the numbers of correct and of all positions; None if the targets are not classes.

    Targets of -100 do not count.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or targets.is_floating_point():
        return None
    outputs = classes_last(outputs, targets)
    if outputs.shape[:-1] != targets.shape or outputs.shape[-1] < 2:
        return None
    counted = targets != IGNORED
    return int(((outputs.argmax(-1) == targets) & counted).sum()), int(counted.sum())

"""The root of the mean squared error of numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.compute.calling import scores
from hvd_train.compute.metrics.meter import Value
from hvd_train.data.batch import Batch


class RootMeanSquaredError:
    """Averages over all numbers. It has no value if the outputs of a batch do not have the shape of its targets."""

    name = "rmse"
    higher_is_better: bool | None = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._squares, self._numbers, self._unlike = 0.0, 0, 0

    def update(self, outputs: Any, batch: Batch) -> None:
        outputs, targets = scores(outputs), batch.targets
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.shape != targets.shape:
            self._unlike += 1
            return
        self._squares += float((outputs.double() - targets.double()).square().sum())
        self._numbers += targets.numel()

    def compute(self, comm: Communicator) -> dict[str, Value]:
        totals = torch.tensor([self._squares, self._numbers, self._unlike], dtype=torch.float64)
        comm.all_reduce_(totals, "sum")
        squares, numbers, unlike = totals.tolist()
        return {} if unlike or not numbers else {self.name: (squares / numbers) ** 0.5}

"""The report of outputs of any kind: the samples with the largest loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.compute.loss import Loss, total
from hvd_train.data.batch import Batch
from hvd_train.data.nesting import map_tensors
from hvd_train.trained.evaluating.worst import Worst


class LossReport:
    """Calls the loss of training with one sample at a time.

    A loss that the model itself returns is of the whole batch. Then no sample is the worst.
    """

    def __init__(self, loss: Loss, split: Any) -> None:
        self._loss, self._worst = loss, Worst(split)

    def update(self, outputs: Any, batch: Batch) -> None:
        if self._loss.in_model:
            return
        losses = [self._of_one(outputs, batch, i) for i in range(batch.samples)]
        self._worst.update(torch.tensor(losses, dtype=torch.float64), batch, lambda i: {})

    def compute(self, comm: Communicator) -> dict[str, Any]:
        return {"kind": "losses", "figures": {}, "rows": [], "worst": self._worst.compute(comm)}

    def _of_one(self, outputs: Any, batch: Batch, i: int) -> float:
        one = partial(map_tensors, partial(_row, i, batch.samples))
        return float(total(self._loss(one(outputs), Batch(one(batch.inputs), one(batch.targets), one(batch.whole)))))


def _row(i: int, samples: int, x: Tensor) -> Tensor:
    return x[i : i + 1] if x.dim() and len(x) == samples else x

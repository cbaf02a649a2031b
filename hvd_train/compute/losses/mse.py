"""Squared difference, averaged over the values of a sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hvd_train.compute.calling import scores
from hvd_train.compute.loss import Loss, LossContext, wide
from hvd_train.data.batch import Batch
from hvd_train.data.nesting import shown
from hvd_train.errors import UserError


class Regression(Loss):
    """Sums over samples the mean of `function` over the values of a sample.

    Targets have as many values as outputs, in the same order.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        """`function` is `F.mse_loss` or takes the same arguments."""
        self._function = function

    def check(self, outputs: Any, batch: Batch) -> None:
        found, targets = scores(outputs), batch.targets
        if not (isinstance(found, Tensor) and isinstance(targets, Tensor) and found.numel() == targets.numel()):
            raise UserError(
                f"train.loss: expected a number for each target; the first sample has outputs {shown(found)} and targets "
                f"{shown(targets)}"
            )

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        found = wide(scores(outputs))
        targets = batch.targets.reshape(found.shape).to(found.dtype)
        return self._function(found, targets, reduction="sum") / found[0].numel()


def create(context: LossContext) -> Loss:
    return Regression(F.mse_loss)

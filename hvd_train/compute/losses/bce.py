"""Binary cross entropy of logits, for samples with any number of labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvd_train.compute.calling import scores
from hvd_train.compute.loss import Loss, LossContext, all_targets, wide
from hvd_train.config.options import Annotated, Literal, PositiveFloat
from hvd_train.data.batch import Batch
from hvd_train.data.nesting import shown
from hvd_train.errors import UserError


class BinaryCrossEntropy(Loss):
    """Sums over the labels of all samples. A label is missing if its target is `ignore_value`."""

    def __init__(self, positive: Tensor | None, ignore_value: float) -> None:
        """`positive` is the weight of the positive targets of each label."""
        self._positive, self._ignored = positive, ignore_value

    def check(self, outputs: Any, batch: Batch) -> None:
        logits, targets = scores(outputs), batch.targets
        if logits.numel() != targets.numel():
            raise UserError(
                f"train.loss: bce takes a target of 0 or 1 for each output, and one sample has outputs {shown(logits)} and "
                f"targets {shown(targets)}; let data have as many targets, or take cross_entropy for one class a sample"
            )
        given = targets[targets != self._ignored]
        if ((given < 0) | (given > 1)).any():
            raise UserError(
                f"train.loss: bce takes targets from 0 to 1, and the first sample has {given.max().item():g}; take "
                "cross_entropy for classes, or set ignore_value to the value of missing labels"
            )
        if self._positive is not None and self._positive.numel() not in (1, logits.shape[-1]):
            raise UserError(
                f"train.loss.pos_weight: expected {logits.shape[-1]} weights, one a label, got {self._positive.numel()}"
            )

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        logits = wide(scores(outputs))
        targets = batch.targets.reshape(logits.shape).to(logits.dtype)
        given = targets != self._ignored
        positive = None if self._positive is None else self._positive.to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(
            logits, targets.where(given, 0), pos_weight=positive, reduction="none"
        )
        return losses.where(given, 0).sum()

    def count(self, batch: Batch) -> float | None:
        return int((batch.targets != self._ignored).sum())


def balanced(targets: Tensor, ignore_value: float) -> Tensor:
    """Return the number of negative by that of positive `targets` (n, k) of each label, (k,).

    The weight of a label without a positive target is 1.
    """
    positive = (targets.where(targets != ignore_value, 0)).sum(0, dtype=torch.float64)
    negative = (targets != ignore_value).sum(0) - positive
    return torch.where(positive > 0, negative / positive.clamp(min=1), 1.0)


def create(
    context: LossContext,
    *,
    pos_weight: Annotated[
        Literal["balanced"] | list[PositiveFloat] | None,
        "weight of the positive targets of each label; balanced: negative by positive ones, counted in all training samples "
        "at the start",
    ] = None,
    ignore_value: Annotated[float, "target of labels that are missing"] = -100.0,
) -> Loss:
    weights: Tensor | None
    if pos_weight == "balanced":
        targets = all_targets(context, "train.loss.pos_weight: balanced")
        weights = balanced(targets.reshape(len(targets), -1), ignore_value)
    else:
        weights = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float64)
    return BinaryCrossEntropy(None if weights is None else weights.to(context.device), ignore_value)

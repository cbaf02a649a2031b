"""Losses and metrics as sums over samples, so that they add up over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hvd_train.config import TrainSection
from hvd_train.data.base import Dataset
from hvd_train.errors import UserError

Loss = Callable[[Tensor, Tensor], Tensor]


def build(train: TrainSection, data: Dataset, device: torch.device) -> Loss:
    """The loss that `train` asks for: (outputs, targets) -> sum over samples, 0-dimensional."""
    name = train.loss
    if name == "auto":
        name = "mse" if data.spec.task == "regression" else "cross_entropy"
    if name == "mse":
        if train.class_weights is not None:
            raise UserError("train.class_weights: the loss is 'mse', which knows no classes; leave the weights out")
        return squared_error
    weights = class_weights(train.class_weights, data)
    weights = None if weights is None else weights.to(device)
    return lambda outputs, targets: cross_entropy(outputs, targets, weights)


def cross_entropy(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Outputs (batch, ..., classes), int64 targets (batch, ...): mean over positions of a sample, summed over samples."""
    positions = targets[0].numel()
    flat = outputs.reshape(-1, outputs.shape[-1])
    flat = flat if flat.dtype == torch.float64 else flat.float()
    weights = None if weights is None else weights.to(flat.dtype)
    return F.cross_entropy(flat, targets.reshape(-1), weight=weights, reduction="sum") / positions


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over a sample's values of the squared difference, summed over samples."""
    targets = targets.reshape(outputs.shape)
    return F.mse_loss(outputs, targets.to(outputs.dtype), reduction="sum") / outputs[0].numel()


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of a sample's positions whose largest output is the target, summed over samples."""
    return (outputs.argmax(-1) == targets).sum() / targets[0].numel()


def class_weights(wanted: str | list[float] | None, data: Dataset) -> Tensor | None:
    """One weight a class, scaled so that the mean over training samples is 1: then it changes no learning rate.

    'balanced' weighs a class by the inverse of its frequency.
    """
    if wanted is None:
        return None
    counts = torch.bincount(data.train.labels.clamp(min=0), minlength=data.spec.outputs).double()
    if data.spec.task != "classification":
        raise UserError(
            f"train.class_weights: the data's task is {data.spec.task}, which has no classes; leave them out"
        )
    if wanted == "balanced":
        weights = torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)
    elif len(wanted) != data.spec.outputs:
        raise UserError(f"train.class_weights: expected {data.spec.outputs} weights, one a class, got {len(wanted)}")
    else:
        weights = torch.tensor(wanted, dtype=torch.float64)
    return (weights * counts.sum() / (weights * counts).sum()).float()

"""The contract of a loss: a sum over samples or other units, which adds up over batches and ranks.

A loss is a file in `hvd_train/compute/losses` whose `create(context, **options)` returns a `Loss`.
The gradient of a step is that of the sum over all ranks, divided by the units of all ranks. So
ranks with unequal numbers of tokens train as one process does.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvd_train.config.schema import TrainSection
from hvd_train.config.section import TARGET
from hvd_train.data.base import Dataset, Split
from hvd_train.data.batch import Batch, divide
from hvd_train.errors import UserError

Sums = dict[str, float]
"""Sums of losses by name: `loss` is what is trained, `loss_NAME` a part of it."""

_COUNTED = 1024
"""Samples that are read at once to count their targets."""

LOSS = "loss"
"""The name of what is trained, in sums and metrics."""


@dataclass(frozen=True)
class LossContext:
    """What a loss may know."""

    data: Dataset
    device: torch.device
    label: str | None = None
    """The key of the targets in samples that are dicts; None: the usual ones (`batch.LABELS`)."""


class Loss(ABC):
    """A function of outputs and a batch."""

    in_model: bool = False
    """True if the model is called with the targets too and returns its loss among its outputs."""

    def check(self, outputs: Any, batch: Batch) -> None:  # noqa: B027
        """Raise UserError if the loss does not take `outputs` for `batch`, the first sample."""

    @abstractmethod
    def __call__(self, outputs: Any, batch: Batch) -> Tensor | dict[str, Tensor]:
        """Return the sum over the units of the batch, 0-dim; a dict of parts whose sum is trained."""

    def count(self, batch: Batch) -> float | None:
        """Return the units of the batch, such as its tokens; None if the units are samples."""
        return None


def build(train: TrainSection, data: Dataset, device: torch.device, label: str | None = None) -> Loss:
    """Return the loss that `train` asks for; UserError if it does not fit the data."""
    if train.loss.member == TARGET:
        return OwnLoss(train.loss.create(), f"target '{train.loss.label}'")
    loss: Loss = train.loss.create(LossContext(data, device, label), expected=Loss)
    return loss


@dataclass(frozen=True)
class OwnLoss(Loss):
    """A function of the user, which takes outputs and the whole batch and returns a mean.

    Its mean is over samples or, if it has `count(batch)`, over as many units. A tensor of one
    dimension has a loss for each sample.
    """

    function: Callable[[Any, Any], Any]
    name: str

    def __call__(self, outputs: Any, batch: Batch) -> Tensor | dict[str, Tensor]:
        found = self.function(outputs, batch.whole)
        number = units(self, batch)
        if isinstance(found, Mapping):
            return {str(name): self._sum(value, number, f"'{name}' of ") for name, value in found.items()}
        return self._sum(found, number, "")

    def count(self, batch: Batch) -> float | None:
        counted = getattr(self.function, "count", None)
        return None if counted is None else float(counted(batch.whole))

    def _sum(self, value: Any, number: float, what: str) -> Tensor:
        if not isinstance(value, Tensor) or value.dim() > 1:
            kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"train.loss: {what}{self.name} is {kind}, expected a mean or one loss for each sample")
        return value.sum() if value.dim() else value * number


def wide(outputs: Tensor) -> Tensor:
    """Return outputs in float32 at least, in which losses are computed and summed."""
    return outputs.float() if outputs.is_floating_point() and outputs.dtype != torch.float64 else outputs


def check_log_probabilities(outputs: Tensor) -> None:
    """Raise UserError if `outputs` (..., classes) are no logarithms of probabilities."""
    total = float(outputs.detach().double().exp().sum(-1).reshape(-1)[0])
    if abs(total - 1) > 0.05:
        raise UserError(
            "train.loss: it takes log-probabilities, and the probabilities of the first output add up to "
            f"{total:.3g}; end the model with log_softmax(-1)"
        )


def all_targets(context: LossContext, option: str) -> Tensor:
    """Return the targets of all training samples; UserError, which names `option`, for a stream."""
    train = context.data.train
    if not isinstance(train, Split):
        raise UserError(f"{option}: it counts all training samples, and here they are a stream; give a list of weights")
    parts = torch.arange(len(train)).split(_COUNTED)
    batches = (divide(train.batch(part), context.label).targets for part in parts)
    return torch.cat([targets for targets in batches if targets is not None])


def units(loss: Loss, batch: Batch) -> float:
    """Return the units that `loss` sums over for `batch`: what it counts, or the samples."""
    counted = loss.count(batch)
    return batch.samples if counted is None else counted


def total(value: Tensor | dict[str, Tensor]) -> Tensor:
    """Return what is trained: the sum of the parts."""
    if isinstance(value, Tensor):
        return value
    return functools.reduce(torch.add, (part.reshape(()) for part in value.values()))


def sums(value: Tensor | dict[str, Tensor]) -> Sums:
    """Return the sums that are recorded of a loss."""
    parts = {} if isinstance(value, Tensor) else {f"{LOSS}_{name}": float(p.detach()) for name, p in value.items()}
    return {LOSS: float(total(value).detach()), **parts}


def add(one: Mapping[str, float], other: Mapping[str, float]) -> Sums:
    """Return the sums of two batches together."""
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}

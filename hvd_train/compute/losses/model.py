"""The loss that the model itself returns, as the models of transformers do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hvd_train.compute.loss import Loss, LossContext
from hvd_train.config.options import Annotated, Literal
from hvd_train.data.batch import Batch
from hvd_train.data.nesting import shown
from hvd_train.errors import UserError


class ModelLoss(Loss):
    """Sums over samples or tokens: the mean that the model returns, times their number.

    The model is called with the targets too. Its loss is `outputs.loss`, `outputs['loss']`, the
    first value of a tuple, or the output itself. A mapping of 0-dim tensors without `loss` holds the
    parts of a loss.
    """

    in_model = True

    def __init__(self, per: str, ignore_index: int, *, shifted: bool) -> None:
        self._per, self._ignored, self._shifted = per, ignore_index, shifted

    def check(self, outputs: Any, batch: Batch) -> None:
        if self._per == "tokens" and (not isinstance(batch.targets, Tensor) or batch.targets.dim() < 2):
            raise UserError(
                f"train.loss.per: tokens needs targets (samples, positions), and one sample has {shown(batch.targets)}; "
                "take per: samples"
            )

    def __call__(self, outputs: Any, batch: Batch) -> Tensor | dict[str, Tensor]:
        counted = self.count(batch)
        number = batch.samples if counted is None else counted
        found = _loss(outputs)
        if isinstance(found, Tensor):
            return self._sum(found, number)
        return {name: self._sum(part, number) for name, part in found.items()}

    def count(self, batch: Batch) -> float | None:
        targets = batch.targets
        is_sequence = isinstance(targets, Tensor) and not targets.is_floating_point() and targets.dim() > 1
        if self._per == "samples" or (self._per == "auto" and not is_sequence):
            return None
        return int(((targets[:, 1:] if self._shifted else targets) != self._ignored).sum())

    def _sum(self, mean: Tensor, number: float) -> Tensor:
        # The mean of nothing is not a number.
        return mean * number if number else torch.zeros((), device=mean.device, requires_grad=True)


def _loss(outputs: Any) -> Tensor | dict[str, Tensor]:
    """Return the loss among the outputs of a model, or its parts; UserError if there is none."""
    found = outputs
    if isinstance(outputs, Mapping):
        found = outputs["loss"] if "loss" in outputs else dict(outputs)
    elif hasattr(outputs, "loss"):
        found = outputs.loss
    elif isinstance(outputs, tuple | list) and outputs:
        found = outputs[0]
    parts = found if isinstance(found, dict) else {"": found}
    if parts and all(_is_loss(part) for part in parts.values()):
        return found  # type: ignore[no-any-return]
    raise UserError(
        f"train.loss: model: the model returns {shown(outputs)}, in which there is no loss; expected outputs.loss, "
        "outputs['loss'], a tuple that begins with the loss, or the loss; does its forward() take the key of the targets "
        "(data.label_key)? Otherwise take another loss (ddl list losses)"
    )


def _is_loss(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 0


def create(
    context: LossContext,
    *,
    per: Annotated[
        Literal["auto", "samples", "tokens"],
        "what the loss is a mean over; tokens: the positions of the targets but ignore_index; auto: tokens if the targets "
        "are sequences of integers",
    ] = "auto",
    shifted: Annotated[
        bool, "the model compares its outputs with the targets of the next position, so the first targets do not count"
    ] = False,
    ignore_index: Annotated[int, "target of positions that count nothing"] = -100,
) -> Loss:
    return ModelLoss(per, ignore_index, shifted=shifted)

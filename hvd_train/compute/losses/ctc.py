"""Connectionist temporal classification of log-probabilities (n, time, classes)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvd_train.compute.calling import scores
from hvd_train.compute.loss import Loss, LossContext, check_log_probabilities, wide
from hvd_train.config.options import Annotated, NonNegativeInt
from hvd_train.data.batch import Batch
from hvd_train.data.nesting import shown
from hvd_train.errors import UserError, nearest


class CTC(Loss):
    """Sums over samples; the loss of a sample is divided by the number of its labels, as in torch.

    Graves et al., ICML 2006. Targets are (n, labels). A loss is infinite if the labels of a sample
    do not fit into its time steps.
    """

    def __init__(
        self,
        blank: int,
        input_lengths: str | None,
        target_lengths: str | None,
        target_padding: int | None,
        *,
        zero_infinity: bool,
    ) -> None:
        self._blank, self._input_lengths, self._target_lengths = blank, input_lengths, target_lengths
        self._padding, self._zero_infinity = target_padding, zero_infinity

    def check(self, outputs: Any, batch: Batch) -> None:
        found = scores(outputs)
        if not isinstance(found, Tensor) or found.dim() != 3 or batch.targets.dim() != 2:
            raise UserError(
                "train.loss: ctc takes outputs (samples, time, classes) and targets (samples, labels), and one sample has "
                f"outputs {shown(found)} and targets {shown(batch.targets)}"
            )
        check_log_probabilities(found)
        inputs, _ = self._lengths(outputs, batch)
        if (inputs > found.shape[1]).any():
            raise UserError(
                f"train.loss.input_lengths: '{self._input_lengths}' is {int(inputs.max())} for the first sample, and the model "
                f"returns {found.shape[1]} time steps; let it return the lengths of its outputs under this key, beside logits"
            )

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        inputs, lengths = self._lengths(outputs, batch)
        targets = batch.targets.where(torch.arange(batch.targets.shape[1], device=lengths.device) < lengths[:, None], 0)
        losses = F.ctc_loss(
            wide(scores(outputs)).transpose(0, 1),
            targets,
            inputs,
            lengths,
            self._blank,
            reduction="none",
            zero_infinity=self._zero_infinity,
        )
        return (losses / lengths.clamp(min=1)).sum()

    def _lengths(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the number of time steps, and of labels, of each sample."""
        found = scores(outputs)
        samples, steps = found.shape[:2]
        if self._input_lengths is None:
            inputs = torch.full((samples,), steps, device=found.device)
        else:
            inputs = _value(self._input_lengths, "input_lengths", outputs, batch.whole)
        if self._target_lengths is not None:
            return inputs, _value(self._target_lengths, "target_lengths", batch.whole)
        return inputs, (batch.targets != self._padding).sum(1)


def _value(key: str, option: str, *places: Any) -> Tensor:
    """Return the integers at `key` of the first of `places` that has it."""
    mappings = [place for place in places if isinstance(place, Mapping)]
    found = next((place[key] for place in mappings if key in place), None)
    if not isinstance(found, Tensor):
        known = [str(name) for place in mappings for name in place]
        raise UserError(f"train.loss.{option}: no '{key}' in the samples{nearest(key, known)}")
    return found.reshape(-1)


def create(
    context: LossContext,
    *,
    blank: Annotated[NonNegativeInt, "class of the blank"] = 0,
    input_lengths: Annotated[
        str | None, "key of the number of time steps of each sample, in the outputs or the batch; default: all steps"
    ] = None,
    target_lengths: Annotated[str | None, "key of the number of labels of each sample, in the batch"] = None,
    target_padding: Annotated[int | None, "value after the last label, in place of target_lengths"] = None,
    zero_infinity: Annotated[bool, "leave out samples whose labels do not fit into their time steps"] = False,
) -> Loss:
    if (target_lengths is None) == (target_padding is None):
        raise UserError(
            "train.loss: ctc needs the number of labels of each sample; give target_lengths: KEY, a key of the batch, or "
            "target_padding: VALUE, the value after the last label (one of them)"
        )
    return CTC(blank, input_lengths, target_lengths, target_padding, zero_infinity=zero_infinity)

"""Distillation: a model learns the outputs of a teacher beside the targets."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvd_train.compute.calling import caller, scores
from hvd_train.compute.loss import Loss, total, units, wide
from hvd_train.config.compress_model import DistillSection
from hvd_train.data.batch import Batch
from hvd_train.data.nesting import shown
from hvd_train.errors import UserError

OPTION = "compress_model.distill"


class Distillation(Loss):
    """(1 - alpha) times the sum of `loss`, plus alpha times the distance to the outputs of `teacher`.

    For classes the distance is T^2 KL(softmax(teacher / T) || softmax(model / T)) (Hinton et al.,
    arXiv 1503.02531), for numbers the mean squared error of their columns. It is the mean over
    samples, or over the positions whose target counts, times the units of `loss`. An evaluation,
    which needs no gradient, measures `loss` alone.
    """

    def __init__(
        self, section: DistillSection, loss: Loss, teacher: nn.Module, *, of_numbers: bool, ignore_index: int = -100
    ) -> None:
        """`teacher` is in eval mode, on the device and in the dtype of the model."""
        self._loss, self._teacher, self._call = loss, teacher, caller(teacher)
        self._temperature, self._alpha = section.temperature, section.alpha
        self._of_numbers, self._ignored = of_numbers, ignore_index
        self.in_model = loss.in_model

    def check(self, outputs: Any, batch: Batch) -> None:
        self._loss.check(outputs, batch)
        own = scores(outputs)
        try:
            theirs = self._taught(batch)
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{OPTION}.teacher: it fails with {shown(batch.inputs)}: {error}") from error
        if not isinstance(theirs, Tensor) or not isinstance(own, Tensor) or theirs.shape != own.shape:
            raise UserError(
                f"{OPTION}.teacher: it returns {shown(theirs)} for a sample, and the model {shown(own)}; expected one tensor "
                "of the same shape from both"
            )

    def count(self, batch: Batch) -> float | None:
        return self._loss.count(batch)

    def __call__(self, outputs: Any, batch: Batch) -> Tensor | dict[str, Tensor]:
        found = self._loss(outputs, batch)
        if not torch.is_grad_enabled():
            return found
        distance = self._distance(wide(scores(outputs)), wide(self._taught(batch)), batch.targets)
        return {
            "task": (1 - self._alpha) * total(found),
            "teacher": self._alpha * units(self._loss, batch) * distance,
        }

    @torch.no_grad()
    def _taught(self, batch: Batch) -> Any:
        return scores(self._call(batch.inputs))

    def _distance(self, own: Tensor, theirs: Tensor, targets: Any) -> Tensor:
        """Return the mean distance of the outputs over samples or positions."""
        if self._of_numbers:
            return F.mse_loss(own, theirs)
        own, theirs = self._flat(own, targets), self._flat(theirs, targets)
        if not len(own):
            return own.sum()
        ours, taught = (F.log_softmax(x / self._temperature, -1) for x in (own, theirs))
        return self._temperature**2 * F.kl_div(ours, taught, reduction="batchmean", log_target=True)

    def _flat(self, outputs: Tensor, targets: Any) -> Tensor:
        """Return the outputs (m, classes) of the positions that count."""
        is_classes = isinstance(targets, Tensor) and not targets.is_floating_point()
        if is_classes and outputs.shape[:-1] != targets.shape:
            outputs = outputs.movedim(1, -1)
        flat = outputs.reshape(-1, outputs.shape[-1])
        return flat[targets.reshape(-1) != self._ignored] if is_classes else flat

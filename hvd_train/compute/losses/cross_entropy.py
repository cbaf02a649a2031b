"""Cross entropy of class scores, with class weights and label smoothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvd_train.compute.calling import scores
from hvd_train.compute.loss import Loss, LossContext, check_log_probabilities, wide
from hvd_train.config.options import Annotated, ClassWeights, Fraction, IgnoreIndex
from hvd_train.data.batch import Batch
from hvd_train.data.nesting import shown
from hvd_train.errors import UserError

WEIGHTS = "train.loss.class_weights"


class ClassLoss(Loss):
    """Sums `function` of scores and classes over samples, or over positions if samples have several.

    As in torch, a target of `ignore_index` counts nothing, and with class weights the mean is over
    the weights of the targets. Targets (n, ...) of integers have outputs (n, ..., classes) or (n,
    classes, ...). Floating-point targets are probabilities (n, ..., classes).
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        context: LossContext,
        weights: Tensor | None = None,
        ignore_index: int = -100,
        *,
        of_log_probabilities: bool = False,
    ) -> None:
        """`function` is `F.cross_entropy` or takes the same arguments."""
        self._function, self._weights, self._ignored = function, weights, ignore_index
        self._of_log_probabilities = of_log_probabilities
        labels = getattr(context.data.train, "labels", None)
        self._labels_count = labels is not None and not bool((labels == ignore_index).any())
        """True if every sample with one class counts."""

    def check(self, outputs: Any, batch: Batch) -> None:
        found, targets = scores(outputs), batch.targets
        if not isinstance(found, Tensor) or not isinstance(targets, Tensor) or _classes_at(found, targets) is None:
            raise UserError(
                "train.loss: expected a score for each class, (n, ..., classes) or (n, classes, ...), and targets (n, ...) of "
                f"integers or probabilities (n, ..., classes); the first sample has outputs {shown(found)} and targets "
                f"{shown(targets)}"
            )
        flat, aims = self._flat(found, targets)
        if self._weights is not None and targets.is_floating_point():
            raise UserError(f"{WEIGHTS}: targets are probabilities here, which have no class to weigh; leave them out")
        if self._weights is not None and len(self._weights) != flat.shape[1]:
            raise UserError(f"{WEIGHTS}: expected {flat.shape[1]} weights, one a class, got {len(self._weights)}")
        given = aims[aims != self._ignored] if not targets.is_floating_point() else aims.new_empty(0)
        if len(given) and not 0 <= given.min() <= given.max() < flat.shape[1]:
            wrong = int(given.min() if given.min() < 0 else given.max())
            raise UserError(
                f"train.loss: the first sample has class {wrong}, and the model returns scores of {flat.shape[1]} classes, "
                f"numbered from 0; let the model return more, or set ignore_index if {wrong} counts nothing"
            )
        if not self._of_log_probabilities:
            return
        check_log_probabilities(flat)
        if targets.is_floating_point():
            raise UserError(
                "train.loss: nll takes one class for each target, and these are probabilities; take cross_entropy"
            )

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        flat, aims = self._flat(wide(scores(outputs)), batch.targets)
        if aims.is_floating_point():
            return self._function(flat, aims, reduction="sum")
        weights = None if self._weights is None else self._weights.to(flat.dtype)
        return self._function(flat, aims, weight=weights, ignore_index=self._ignored, reduction="sum")

    def count(self, batch: Batch) -> float | None:
        targets: Tensor = batch.targets
        if targets.is_floating_point():
            return targets[..., 0].numel() if targets.dim() > 2 else None
        if self._weights is None and self._labels_count and targets.dim() == 1:
            return None
        given = targets != self._ignored
        return int(given.sum()) if self._weights is None else float(self._weights[targets[given].long()].sum())

    def _flat(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs (m, classes), and targets (m,) or (m, classes)."""
        if outputs.dim() > 2:
            outputs = outputs.movedim(_classes_at(outputs, targets) or -1, -1)
        flat = outputs if outputs.dim() == 2 else outputs.reshape(-1, outputs.shape[-1])
        if targets.is_floating_point():
            return flat, targets.reshape(flat.shape).to(flat.dtype)
        return flat, targets.reshape(-1).long()


def _classes_at(outputs: Tensor, targets: Tensor) -> int | None:
    """Return the dimension of the classes in `outputs`; None if targets do not fit."""
    if targets.is_floating_point():
        return -1 if outputs.shape == targets.shape and outputs.dim() > 1 else None
    if outputs.shape[:-1] == targets.shape:
        return -1
    is_second = outputs.dim() > 1 and outputs.shape[:1] + outputs.shape[2:] == targets.shape
    return 1 if is_second else None


def class_weights_of(wanted: str | list[float] | None, context: LossContext) -> Tensor | None:
    """Return one weight for each class; with a mean of 1 over training samples that have one class each.

    'balanced' weighs a class by the inverse of its frequency. Raise UserError for weights that do
    not fit the data.
    """
    if wanted is None:
        return None
    data, classes = context.data, context.data.spec.outputs
    if data.spec.task == "regression":
        raise UserError(f"{WEIGHTS}: the data's task is regression, which has no classes; leave the weights out")
    labels = getattr(data.train, "labels", torch.empty(0, dtype=torch.int64))
    counts = torch.bincount(labels[labels >= 0], minlength=classes).double()
    if wanted == "balanced":
        if data.spec.task != "classification" or not counts.sum():
            raise UserError(
                f"{WEIGHTS}: balanced counts the classes of the training samples, and here they do not have one class "
                "each; give the weights as a list"
            )
        weights = torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)
    else:
        weights = torch.tensor(wanted, dtype=torch.float64)
    if data.spec.task != "classification" or not counts.sum():
        return weights.to(context.device)
    if len(weights) != classes:
        raise UserError(f"{WEIGHTS}: expected {classes} weights, one a class, got {len(weights)}")
    return (weights * counts.sum() / (weights * counts).sum()).to(context.device)


def create(
    context: LossContext,
    *,
    class_weights: ClassWeights = None,
    label_smoothing: Annotated[Fraction, "share of the target that is spread evenly over all classes"] = 0.0,
    ignore_index: IgnoreIndex = -100,
) -> Loss:
    """Raise UserError for weights that do not fit the classes of the data."""
    function = partial(F.cross_entropy, label_smoothing=label_smoothing)
    return ClassLoss(function, context, class_weights_of(class_weights, context), ignore_index)

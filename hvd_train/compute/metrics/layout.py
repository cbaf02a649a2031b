"""The layouts of outputs and targets, and those that the metrics of torchmetrics take.

Outputs of classifications are logits. torchmetrics guesses for each batch whether it got logits or
probabilities, so that its result would depend on how samples are divided into batches. Therefore it
gets probabilities here. Floating-point values become float64: sums of other widths would depend on
the number of ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""The target of positions that do not count, such as padding."""


def classes_last(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return outputs (n, ..., classes), given as such or as (n, classes, ...)."""
    if outputs.shape[:-1] != targets.shape and outputs.dim() == targets.dim() + 1:
        return outputs.movedim(1, -1)
    return outputs


def binary(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities and classes of the shape of `targets`, from one logit or from two."""
    if outputs.dim() == targets.dim() + 1 and outputs.shape[-1] == 2:
        return outputs.double().softmax(-1)[..., 1], whole(targets)
    return outputs.double().sigmoid().reshape(targets.shape), whole(targets)


def multiclass(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities (n, classes, ...) and classes (n, ...)."""
    if not outputs.is_floating_point():
        return outputs, targets
    return classes_last(outputs, targets).double().softmax(-1).movedim(-1, 1), whole(targets)


def multilabel(outputs: Tensor, targets: Tensor, labels: int) -> tuple[Tensor, Tensor]:
    """Return probabilities and zeros and ones, both (n, labels, ...)."""
    targets = whole(targets).reshape(outputs.shape)
    if outputs.shape[-1] == labels:
        outputs, targets = outputs.movedim(-1, 1), targets.movedim(-1, 1)
    return outputs.double().sigmoid(), targets


def classes(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes with the largest outputs, and the targets."""
    if outputs.is_floating_point() and outputs.dim() == targets.dim() + 1:
        return classes_last(outputs, targets).argmax(-1), whole(targets)
    return outputs, targets


def sequences(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs (n, positions, classes) and targets (n, positions)."""
    outputs = classes_last(outputs, targets).double()
    return outputs.reshape(len(outputs), -1, outputs.shape[-1]), targets.reshape(len(outputs), -1)


def values(outputs: Any, targets: Any) -> tuple[Any, Any]:
    """Return outputs and targets of one shape; a single column becomes a vector."""
    outputs, targets = wide(outputs), wide(targets)
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.numel() == targets.numel():
        shape = outputs.shape[:1] if outputs.dim() == 2 and outputs.shape[1] == 1 else outputs.shape
        return outputs.reshape(shape), targets.reshape(shape)
    return outputs, targets


def relevances(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores and whole relevances of one shape."""
    outputs, targets = values(outputs, targets)
    return outputs, whole(targets)


def wide(value: Any) -> Any:
    """Return a floating-point tensor as float64, and everything else unchanged."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def whole(targets: Tensor) -> Tensor:
    """Return `targets` as integers; ValueError if they are none."""
    if not targets.is_floating_point():
        return targets
    if not torch.equal(targets, targets.round()):
        raise ValueError("its targets are whole numbers, such as 0 and 1, and the data has fractions")
    return targets.long()

"""A metric that averages over samples, for `own_metric.yaml`."""

from __future__ import annotations

from torch import Tensor


def within_one(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 for each sample whose predicted class is the target or a neighbour of it, else 0."""
    return ((outputs.argmax(-1) - targets).abs() <= 1).float()


within_one.higher_is_better = True  # type: ignore[attr-defined]

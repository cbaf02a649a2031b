"""How well attributions add up to the change of the output."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def total(values: Iterable[Tensor]) -> float:
    """Return the sum of all attributions, added up in float64."""
    return sum(float(value.detach().double().sum()) for value in values)


def relative_error(values: Iterable[Tensor], change: float) -> float:
    """Return |sum of `values` - `change`| / |`change`|; 0 if both are 0."""
    gap = abs(total(values) - change)
    return gap / abs(change) if change else (float("inf") if gap else 0.0)

"""Means, variances and errors of columns of numbers, merged without cancellation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json


@dataclass(frozen=True)
class Moments:
    """Moments of targets and residuals of `(columns,)`, in float64."""

    number: int
    mean: Tensor
    """Of the targets."""
    spread: Tensor
    """The sum of squared differences to the mean of the targets."""
    residual: Tensor = field(repr=False)
    """The sum of the residuals, prediction - target."""
    absolute: Tensor = field(repr=False)
    squared: Tensor = field(repr=False)
    largest: Tensor = field(repr=False)
    """The largest absolute residual."""


def of(predictions: Tensor, targets: Tensor) -> Moments:
    """Return the moments of predictions and targets (n, columns), n > 0."""
    aims = targets.double()
    residuals = predictions.double() - aims
    mean, size = aims.mean(0), residuals.abs()
    spread = (aims - mean).square().sum(0)
    return Moments(len(aims), mean, spread, residuals.sum(0), size.sum(0), residuals.square().sum(0), size.amax(0))


def merge(one: Moments | None, other: Moments) -> Moments:
    """Return the moments of both together (Chan et al., 1979)."""
    if one is None:
        return other
    number = one.number + other.number
    step = other.mean - one.mean
    return Moments(
        number,
        one.mean + step * (other.number / number),
        one.spread + other.spread + step.square() * (one.number * other.number / number),
        one.residual + other.residual,
        one.absolute + other.absolute,
        one.squared + other.squared,
        torch.maximum(one.largest, other.largest),
    )


def of_all_ranks(own: Moments | None, comm: Communicator) -> Moments | None:
    """Return the moments of the samples of all ranks, None if they have none; collective."""
    plain = None if own is None else [v.tolist() if isinstance(v, Tensor) else v for v in vars(own).values()]
    parts = [_restored(values) for values in gather_json(comm, plain) if values is not None]
    return reduce(merge, parts[1:], parts[0]) if parts else None


def rows(moments: Moments, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return errors of each column; r2 is None if all targets of a column are equal."""
    number = moments.number
    return [
        {
            "target": name,
            "rmse": float(moments.squared[i] / number) ** 0.5,
            "mae": float(moments.absolute[i]) / number,
            "bias": float(moments.residual[i]) / number,
            "largest_error": float(moments.largest[i]),
            "r2": 1 - float(moments.squared[i] / moments.spread[i]) if moments.spread[i] > 0 else None,
        }
        for i, name in enumerate(names)
    ]


def _restored(values: list[Any]) -> Moments:
    number, *columns = values
    return Moments(number, *(torch.tensor(column, dtype=torch.float64) for column in columns))

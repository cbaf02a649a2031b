"""Sets a random rectangle of an image to zero (random erasing)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvd_train.config.options import Annotated, Field
from hvd_train.data.augmentation import map_inputs, uniform
from hvd_train.data.transform import Transform, TransformContext

RATIO = 3.3
"""Largest ratio of the sides of the rectangle."""


@dataclass(frozen=True)
class Erase(Transform):
    """Sets a rectangle of an image to zero with a probability. Zhong et al., arXiv 1708.04896."""

    probability: float
    area: tuple[float, float]
    label: str | None

    def sample(self, sample: Any, generator: torch.Generator) -> Any:
        if uniform(0, 1, generator) >= self.probability:
            return sample
        side = math.sqrt(uniform(*self.area, generator))
        skew = math.exp(uniform(-1, 1, generator) * math.log(RATIO) / 2)
        at = torch.rand(2, generator=generator).tolist()

        def erased(x: Tensor) -> Tensor:
            if x.dim() != 3:
                return x
            spans = zip(x.shape[1:], (side * skew, side / skew), at, strict=True)
            rows, columns = (span(length, part, where) for length, part, where in spans)
            x = x.clone()
            x[:, rows, columns] = 0
            return x

        return map_inputs(erased, sample, self.label)


def span(length: int, part: float, where: float) -> slice:
    """Return a slice of a `part` of `length`, at its start (`where` 0) to its end (1)."""
    size = min(length, round(length * part))
    start = round((length - size) * where)
    return slice(start, start + size)


def create(
    context: TransformContext,
    *,
    probability: Annotated[float, Field(ge=0, le=1), "probability that an image has a rectangle erased"] = 0.5,
    area: Annotated[
        list[Annotated[float, Field(gt=0, le=1)]],
        Field(min_length=2, max_length=2),
        "smallest and largest part of the area",
    ] = [0.02, 0.33],
) -> Erase:
    return Erase(probability, (min(area), max(area)), context.label)

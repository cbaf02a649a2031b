"""Puts a rectangle of another image of the batch into each image; mixes targets by its area."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvd_train.config.options import Annotated, Field, PositiveFloat
from hvd_train.data.augmentation import beta, map_inputs, map_targets, soft, uniform
from hvd_train.data.batch import divide
from hvd_train.data.nesting import count, shown, tensors
from hvd_train.data.transform import Transform, TransformContext
from hvd_train.errors import UserError


@dataclass(frozen=True)
class Cutmix(Transform):
    """Replaces a rectangle whose area is a part of Beta(alpha, alpha); one rectangle for a batch.

    Yun et al., arXiv 1905.04899. The centre is uniform, and the rectangle is cut at the border, so
    the targets are mixed by the area that is left. Classes become probabilities (n, `outputs`),
    which the loss `cross_entropy` takes. A rank mixes the images of its own batch.
    """

    alpha: float
    probability: float
    outputs: int
    label: str | None

    def batch(self, batch: Any, generator: torch.Generator) -> Any:
        batch = map_targets(lambda y: soft(y, self.outputs), batch, self.label)
        if uniform(0, 1, generator) >= self.probability:
            return batch
        image = next((x for x in tensors(divide(batch, self.label).inputs) if x.dim() == 4), None)
        if image is None:
            raise UserError(
                f"data.transforms: cutmix: a batch is {shown(batch)}, expected images (n, channels, height, width)"
            )
        height, width = image.shape[-2:]
        side = math.sqrt(beta(self.alpha, generator))
        rows, columns = (window(length, side, uniform(0, 1, generator)) for length in (height, width))
        part = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        other = torch.randperm(count(batch), generator=generator)

        def pasted(x: Tensor) -> Tensor:
            if x.shape[-2:] != (height, width):
                return x
            result = x.clone()
            result[..., rows, columns] = x[other][..., rows, columns]
            return result

        mixed = map_inputs(pasted, batch, self.label)
        return map_targets(lambda y: y.lerp(y[other], part), mixed, self.label)


def window(length: int, side: float, centre: float) -> slice:
    """Return the slice of `side` times `length` around `centre` (0 to 1), cut at both ends."""
    start = round((centre - side / 2) * length)
    return slice(max(0, start), min(length, start + round(side * length)))


def create(
    context: TransformContext,
    *,
    alpha: Annotated[PositiveFloat, "parameter of the Beta distribution of the area; 1: uniform"] = 1.0,
    probability: Annotated[float, Field(ge=0, le=1), "probability that a batch is mixed"] = 1.0,
) -> Cutmix:
    return Cutmix(alpha, probability, context.spec.outputs, context.label)

"""Flips an image at random, left to right or upside down."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hvd_train.config.options import Annotated, Field
from hvd_train.data.augmentation import Function, ImageTransform, uniform
from hvd_train.data.transform import TransformContext


@dataclass(frozen=True)
class Flip:
    """Flips an image along its width and its height with the given probabilities."""

    horizontal: float
    vertical: float

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Function:
        chances = {-1: self.horizontal, -2: self.vertical}
        dimensions = [d for d, chance in chances.items() if uniform(0, 1, generator) < chance]
        return lambda x: x.flip(dimensions) if dimensions else x


def create(
    context: TransformContext,
    *,
    horizontal: Annotated[float, Field(ge=0, le=1), "probability to swap left and right"] = 0.5,
    vertical: Annotated[float, Field(ge=0, le=1), "probability to swap top and bottom"] = 0.0,
) -> ImageTransform:
    return ImageTransform(Flip(horizontal, vertical), context.label)

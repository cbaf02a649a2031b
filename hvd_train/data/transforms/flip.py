"""Flips an image at random, left to right or upside down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hvd_train.config.options import Annotated, Field
from hvd_train.data.augmentation import Function, map_image, map_images, uniform
from hvd_train.data.transform import Transform, TransformContext


@dataclass(frozen=True)
class Flip(Transform):
    """Flips an image along its width and its height with the given probabilities."""

    horizontal: float
    vertical: float
    label: str | None

    def draw(self, height: int, width: int, generator: torch.Generator) -> Function:
        chances = {-1: self.horizontal, -2: self.vertical}
        dimensions = [d for d, chance in chances.items() if uniform(0, 1, generator) < chance]
        return lambda x: x.flip(dimensions) if dimensions else x

    def sample(self, sample: Any, generator: torch.Generator) -> Any:
        return map_image(self.draw, sample, generator, self.label)

    def rows(self, batch: Any, generators: Sequence[torch.Generator]) -> Any:
        return map_images(self.draw, batch, generators, self.label)


def create(
    context: TransformContext,
    *,
    horizontal: Annotated[float, Field(ge=0, le=1), "probability to swap left and right"] = 0.5,
    vertical: Annotated[float, Field(ge=0, le=1), "probability to swap top and bottom"] = 0.0,
) -> Flip:
    return Flip(horizontal, vertical, context.label)

"""Cuts a random part out of an image and resizes it to the size of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hvd_train.config.options import Annotated, Field
from hvd_train.data.augmentation import Function, ImageTransform, uniform
from hvd_train.data.transform import TransformContext


@dataclass(frozen=True)
class ResizedCrop:
    """Enlarges a part of `area`, from 0 to 1, and of a ratio of sides up to `ratio` times another.

    Szegedy et al., arXiv 1409.4842, section 6. Integers, such as masks, are resized to the nearest.
    """

    area: tuple[float, float]
    ratio: float

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Function:
        side = math.sqrt(uniform(*self.area, generator))
        skew = math.exp(uniform(-1, 1, generator) * math.log(self.ratio) / 2)
        rows = min(height, max(1, round(height * side * skew)))
        columns = min(width, max(1, round(width * side / skew)))
        top = int(torch.randint(height - rows + 1, (), generator=generator))
        left = int(torch.randint(width - columns + 1, (), generator=generator))
        return lambda x: resized(x[..., top : top + rows, left : left + columns], height, width)


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Return (..., rows, columns) resized to (..., height, width)."""
    planes = x.reshape(1, -1, *x.shape[-2:])
    if x.is_floating_point():
        planes = F.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    else:
        planes = F.interpolate(planes.double(), (height, width), mode="nearest-exact").to(x.dtype)
    return planes.reshape(*x.shape[:-2], height, width)


def create(
    context: TransformContext,
    *,
    area: Annotated[
        list[Annotated[float, Field(gt=0, le=1)]],
        Field(min_length=2, max_length=2),
        "smallest and largest part of the area",
    ] = [0.25, 1.0],
    ratio: Annotated[float, Field(ge=1), "largest change of the ratio of the sides"] = 4 / 3,
) -> ImageTransform:
    return ImageTransform(ResizedCrop((min(area), max(area)), ratio), context.label)

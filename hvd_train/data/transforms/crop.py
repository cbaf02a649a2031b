"""Adds a border to an image and cuts a random part of its old size out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hvd_train.config.options import Annotated, PositiveInt
from hvd_train.data.augmentation import Function, ImageTransform
from hvd_train.data.transform import TransformContext


@dataclass(frozen=True)
class Crop:
    """Shifts an image by up to `padding` pixels in both directions; zeros come in at the border."""

    padding: int

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Function:
        top, left = torch.randint(0, 2 * self.padding + 1, (2,), generator=generator).tolist()
        return lambda x: self._padded(x)[..., top : top + height, left : left + width]

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, (self.padding,) * 4)


def create(
    context: TransformContext, *, padding: Annotated[PositiveInt, "pixels of zeros that are added to each side"] = 4
) -> ImageTransform:
    return ImageTransform(Crop(padding), context.label)

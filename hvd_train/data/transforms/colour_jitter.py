"""Changes brightness, contrast, saturation and hue of an image at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvd_train.config.options import Annotated, Field, NonNegativeFloat
from hvd_train.data.augmentation import map_inputs, uniform
from hvd_train.data.transform import Transform, TransformContext

YIQ = torch.tensor([(0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float64)
"""From red, green and blue to luma and two components of colour (NTSC)."""


@dataclass(frozen=True)
class ColourJitter(Transform):
    """Scales each property by a factor of up to 1 +- its option, in order, and rotates the hue.

    Pixels are in 0 to 1, and stay there; `mean` and `std` say how the source standardised them.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    mean: Sequence[float]
    std: Sequence[float]
    label: str | None

    def sample(self, sample: Any, generator: torch.Generator) -> Any:
        changes = (self.brightness, self.contrast, self.saturation)
        factors = [uniform(max(0.0, 1 - change), 1 + change, generator) for change in changes]
        turn = uniform(-self.hue, self.hue, generator)
        return map_inputs(lambda x: self._changed(x, factors, turn) if x.dim() == 3 else x, sample, self.label)

    def _changed(self, x: Tensor, factors: Sequence[float], turn: float) -> Tensor:
        mean, std = (torch.tensor(values, dtype=x.dtype)[:, None, None] for values in (self.mean, self.std))
        return (jitter(x * std + mean, factors, turn) - mean) / std


def jitter(x: Tensor, factors: Sequence[float], turn: float) -> Tensor:
    """Return the image `x` (channels, height, width) with pixels in 0 to 1, changed.

    `factors` are those of brightness, contrast and saturation, and `turn` is the rotation of the
    hue, where 1 is the full circle. The colours of an image without three channels do not change.
    """
    brightness, contrast, saturation = factors
    x = (x * brightness).clamp(0, 1)
    x = _mixed(grey(x).mean().expand_as(x), x, contrast)
    if len(x) != 3:
        return x
    x = _mixed(grey(x).expand_as(x), x, saturation)
    return torch.matmul(hue_rotation(turn).to(x.dtype), x.flatten(1)).view_as(x).clamp(0, 1) if turn else x


def grey(x: Tensor) -> Tensor:
    """Return the luma of an image, (1, height, width); the mean of channels if not three."""
    if len(x) != 3:
        return x.mean(0, keepdim=True)
    return torch.matmul(YIQ[:1].to(x.dtype), x.flatten(1)).view(1, *x.shape[1:])


def hue_rotation(turn: float) -> Tensor:
    """Return the matrix that rotates the hue of red, green and blue, and keeps the luma."""
    cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    rotation = torch.tensor([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]], dtype=torch.float64)
    back: Tensor = torch.linalg.inv(YIQ)
    return back @ rotation @ YIQ


def _mixed(start: Tensor, end: Tensor, factor: float) -> Tensor:
    return start.lerp(end, factor).clamp(0, 1)


def create(
    context: TransformContext,
    *,
    brightness: Annotated[NonNegativeFloat, "largest change of the brightness, as a part of it"] = 0.2,
    contrast: Annotated[NonNegativeFloat, "largest change of the contrast"] = 0.2,
    saturation: Annotated[NonNegativeFloat, "largest change of the saturation"] = 0.2,
    hue: Annotated[float, Field(ge=0, le=0.5), "largest rotation of the hue; 0.5 is the opposite colour"] = 0.0,
) -> ColourJitter:
    scale = context.preprocessing.get("files", {})
    return ColourJitter(
        brightness, contrast, saturation, hue, scale.get("mean", [0.0]), scale.get("std", [1.0]), context.label
    )

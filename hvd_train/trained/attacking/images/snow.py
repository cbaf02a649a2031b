"""Falling snow, which hides and brightens the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption
from hvd_train.trained.attacking.pictures import grey, moved, scale, uniform, zoomed

FALLS = (
    (0.1, 0.3, 3.0, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
"""Mean and deviation of the flakes, their enlargement, the value below which there is none, length
and sigma of their fall in pixels, and the share of the image that is not brightened."""


def create(severity: int) -> Corruption:
    mean, deviation, size, least, length, sigma, share = FALLS[severity - 1]

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        s, shape = scale(image), image.shape[-2:]
        flakes = zoomed(mean + deviation * torch.randn((1, *shape), generator=generator), size)
        angle = float(uniform((1,), math.pi / 4, math.pi * 3 / 4, generator))
        layer = moved(flakes.masked_fill(flakes < least, 0.0).clamp(0, 1), length * s, sigma * s, angle)
        bright = share * image + (1 - share) * torch.maximum(image, grey(image) * 1.5 + 0.5)
        return bright + layer + layer.flip(1, 2)

    return corrupt

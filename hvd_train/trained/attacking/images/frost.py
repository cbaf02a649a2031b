"""Ice crystals on the lens; drawn as ridges of clouds, where ImageNet-C has photographs."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption
from hvd_train.trained.attacking.pictures import plasma

MIXES = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
"""The weights of the image and of the ice."""

_TINT = (0.85, 0.95, 1.0)
"""The colour of ice in red, green and blue."""


def create(severity: int) -> Corruption:
    of_image, of_ice = MIXES[severity - 1]

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        tint = torch.tensor(_TINT if len(image) == 3 else (1.0,))[:, None, None]
        return of_image * image + of_ice * tint * _ice(image.shape[-2], image.shape[-1], generator)

    return corrupt


def _ice(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return needles, where a cloud is near its middle value, in patches."""
    needles = 1 - (2 * plasma(height, width, 1.4, generator) - 1).abs()
    return (needles.square() * 0.6 + 0.4 * plasma(height, width, 2.0, generator)).clamp(0, 1)

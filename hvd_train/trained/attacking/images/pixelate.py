"""Fewer, larger pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption

FACTORS = (0.6, 0.5, 0.4, 0.3, 0.25)
"""The side of the image in pixels, as a part of what it was."""


def create(severity: int) -> Corruption:
    factor = FACTORS[severity - 1]

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        height, width = image.shape[-2:]
        small = F.interpolate(image[None], (max(1, int(height * factor)), max(1, int(width * factor))), mode="area")
        return F.interpolate(small, (height, width), mode="nearest")[0]

    return corrupt

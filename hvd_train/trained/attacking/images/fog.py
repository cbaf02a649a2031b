"""Fog: a fractal of clouds in front of the image."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption
from hvd_train.trained.attacking.pictures import plasma

CLOUDS = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
"""The weight of the clouds, and by how much each finer detail of them is weaker."""


def create(severity: int) -> Corruption:
    weight, decay = CLOUDS[severity - 1]

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        most = image.max()
        return (image + weight * plasma(image.shape[-2], image.shape[-1], decay, generator)) * most / (most + weight)

    return corrupt

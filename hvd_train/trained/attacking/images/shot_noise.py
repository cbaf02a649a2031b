"""Poisson noise, as of few photons."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption

PHOTONS = (60, 25, 12, 5, 3)
"""Photons of a white pixel."""


def create(severity: int) -> Corruption:
    photons = PHOTONS[severity - 1]

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        return torch.poisson(image * photons, generator) / photons

    return corrupt

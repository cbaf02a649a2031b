"""Gaussian noise, as of a sensor in low light."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption

DEVIATIONS = (0.08, 0.12, 0.18, 0.26, 0.38)


def create(severity: int) -> Corruption:
    deviation = DEVIATIONS[severity - 1]

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        return image + deviation * torch.randn(image.shape, generator=generator)

    return corrupt

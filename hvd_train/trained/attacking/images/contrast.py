"""Less contrast: values nearer to the mean of their channel."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption

FACTORS = (0.4, 0.3, 0.2, 0.1, 0.05)


def create(severity: int) -> Corruption:
    factor = FACTORS[severity - 1]

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        mean = image.mean((1, 2), keepdim=True)
        return (image - mean) * factor + mean

    return corrupt

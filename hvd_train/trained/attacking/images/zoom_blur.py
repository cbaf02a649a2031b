"""Blur of a camera that approaches: a mean over enlargements."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption
from hvd_train.trained.attacking.pictures import zoomed

ZOOMS = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
"""End of the factors, which is not one of them, and their distance; they begin at 1."""


def create(severity: int) -> Corruption:
    end, distance = ZOOMS[severity - 1]
    factors = torch.arange(1, end, distance).tolist()

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        return torch.stack([image, *(zoomed(image, factor) for factor in factors)]).mean(0)

    return corrupt

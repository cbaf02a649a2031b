"""Frosted glass: pixels change places with near ones."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption
from hvd_train.trained.attacking.pictures import blurred, scale

PANES = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
"""Sigma of the blur in pixels, largest displacement in pixels, and number of displacements."""


def create(severity: int) -> Corruption:
    sigma, most, times = PANES[severity - 1]

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        s, (height, width) = scale(image), image.shape[-2:]
        most_here, image = max(1, round(most * s)), blurred(image, sigma * s)
        y, x = torch.arange(height)[:, None], torch.arange(width)[None]
        for _ in range(times):
            by = torch.randint(-most_here, most_here + 1, (2, height, width), generator=generator)
            image = image[:, (y + by[0]).clamp(0, height - 1), (x + by[1]).clamp(0, width - 1)]
        return blurred(image, sigma * s)

    return corrupt

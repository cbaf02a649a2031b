"""Small regions are stretched: a random affine map and smooth displacements."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption
from hvd_train.trained.attacking.pictures import blurred, displaced, scale, uniform

STRETCHES = ((488.0, 170.8, 24.4), (488.0, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88))
"""Weight and sigma of the displacements, and the largest shift of three points, in pixels."""


def create(severity: int) -> Corruption:
    weight, sigma, shift = STRETCHES[severity - 1]

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        s, shape = scale(image), image.shape[-2:]
        down, across = _affine(shape[0], shape[1], shift * s, generator)
        field = blurred(uniform((2, *shape), -1, 1, generator), sigma * s) * weight * s
        return displaced(image, down + field[0], across + field[1])

    return corrupt


def _affine(height: int, width: int, most: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return displacements of the affine map that moves three points around the centre at random."""
    side = max(1, min(height, width) // 3)
    centre = torch.tensor([height // 2, width // 2])
    corners = centre + side * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    moves = uniform((3, 2), -most, most, generator)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    here = torch.stack([y, x, torch.ones_like(y)], -1).float()
    by = here @ torch.linalg.solve(torch.cat([corners, torch.ones(3, 1)], 1), moves)
    return by[..., 0], by[..., 1]

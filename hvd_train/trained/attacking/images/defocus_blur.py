"""Blur of a lens out of focus: each point becomes a disk."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption
from hvd_train.trained.attacking.pictures import blurred, convolved, scale

DISKS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
"""Radius of the disk, and sigma of the blur that smooths its edge, in pixels."""

_PARTS = 9
"""Parts of the side of a pixel, of which those in the disk are counted."""


def create(severity: int) -> Corruption:
    radius, sigma = DISKS[severity - 1]

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        s = scale(image)
        return blurred(convolved(image, disk(radius * s)), sigma * s)

    return corrupt


def disk(radius: float) -> Tensor:
    """Return the share of each pixel that a disk covers, divided by their sum."""
    length = math.ceil(radius)
    at = (torch.arange((2 * length + 1) * _PARTS) + 0.5) / _PARTS - length - 0.5
    inside = (at[:, None].square() + at.square() <= radius**2).float()
    share = inside.reshape(2 * length + 1, _PARTS, 2 * length + 1, _PARTS).sum((1, 3))
    return share / share.sum()

"""Blur of a camera that moves in a random direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption
from hvd_train.trained.attacking.pictures import moved, scale, uniform

MOTIONS = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
"""Length of the motion, and sigma of its weights, in pixels."""


def create(severity: int) -> Corruption:
    length, sigma = MOTIONS[severity - 1]

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        s, angle = scale(image), float(uniform((1,), -math.pi / 4, math.pi / 4, generator))
        return moved(image, length * s, sigma * s, angle)

    return corrupt

"""The Gaussian mechanism: clip each client's update, and add Gaussian noise."""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from torch import Tensor


def clip_(x: Tensor, norm: float) -> None:
    """Scale `x` so that its Euclidean norm is at most `norm`."""
    x.mul_(min(1.0, norm / max(float(torch.linalg.vector_norm(x, dtype=torch.float64)), 1e-300)))


def gaussian(numel: int, deviation: float) -> Tensor:
    """Return `numel` independent samples of N(0, deviation^2) in float64, by Box-Muller.

    The randomness is the operating system's entropy, so that no seed predicts the samples.
    """
    bits = np.frombuffer(os.urandom(8 * (numel + numel % 2)), dtype=np.uint64) >> np.uint64(11)
    first, second = torch.from_numpy((bits + 0.5) * 2.0**-53).chunk(2)
    radius, angle = (-2 * first.log()).sqrt() * deviation, 2 * math.pi * second
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:numel]

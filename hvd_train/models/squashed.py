"""A Gaussian distribution squashed into (-1, 1) by tanh, as Haarnoja et al. 2018 choose actions.

`outputs` `(..., 2 * numbers)` are the means and the logarithms of the standard deviations before tanh.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST, LARGEST = -20.0, 2.0
"""Limits of the logarithm of a standard deviation, those of the paper's own code."""


def mode(outputs: Tensor) -> Tensor:
    """Return the squashed means `(..., numbers)`."""
    return torch.tanh(_parts(outputs)[0])


def sample(outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `noise` of a standard normal distribution becomes, and the logarithms of its density.

    Gradients flow through both. The density is that of the squashed numbers, `(...)`.
    """
    mean, deviation = _parts(outputs)
    noise = noise.to(mean)
    before = mean + deviation.exp() * noise
    # log(1 - tanh(x)^2), which rounding would make log(0) from about 9 on in float32.
    slope = 2 * (math.log(2) - before - functional.softplus(-2 * before))
    density = -noise.square() / 2 - deviation - math.log(2 * math.pi) / 2 - slope
    return torch.tanh(before), density.sum(-1)


def _parts(outputs: Tensor) -> tuple[Tensor, Tensor]:
    mean, deviation = outputs.chunk(2, dim=-1)
    return mean, deviation.clamp(SMALLEST, LARGEST)

"""Normalisation of the channels of images."""

from __future__ import annotations

import math

from torch import nn


def group_norm(channels: int) -> nn.Module:
    """Up to eight groups of channels, normalised within a sample: the rest of the batch plays no part."""
    return nn.GroupNorm(math.gcd(channels, 8), channels)

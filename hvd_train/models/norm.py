"""Normalisation layers for images."""

from __future__ import annotations

import math

from torch import nn


def group_norm(channels: int) -> nn.Module:
    """Return a normalisation of up to eight groups of channels within each sample."""
    return nn.GroupNorm(math.gcd(channels, 8), channels)

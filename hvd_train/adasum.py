"""Adaptive summation: a sum of vectors that point in different directions, a mean of those that agree."""

from __future__ import annotations

import torch
from torch import Tensor


def adasum(a: Tensor, b: Tensor) -> Tensor:
    """(1 - a.b / 2|a|^2) a + (1 - a.b / 2|b|^2) b (Maleki et al., arXiv 2006.02924): for zeros, the other one.

    Products are summed in float64; halves are combined in float32.
    """
    wide = torch.promote_types(a.dtype, torch.float32)
    x, y = a.to(wide), b.to(wide)
    dot, xx, yy = (float((u.double() * v.double()).sum()) for u, v in ((x, y), (x, x), (y, y)))
    total = x * (1 - dot / (2 * xx) if xx else 1.0) + y * (1 - dot / (2 * yy) if yy else 1.0)
    return total.to(a.dtype)

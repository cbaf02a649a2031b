"""Adaptive summation: a sum of vectors that point in different directions, a mean of those that agree."""

from __future__ import annotations

import torch
from torch import Tensor


def adasum(a: Tensor, b: Tensor) -> Tensor:
    """(1 - a.b / 2|a|^2) a + (1 - a.b / 2|b|^2) b (Maleki et al., arXiv 2006.02924): for zeros, the other one.

    Products are summed in float64, of copies: aligned alike, all ranks get the same bits. Halves are combined in float32,
    complex numbers as pairs of real ones.
    """
    if a.is_complex():
        return torch.view_as_complex(adasum(torch.view_as_real(a), torch.view_as_real(b)))
    u, v = (t.flatten().to(torch.float64, copy=True) for t in (a, b))
    dot, uu, vv = (float(torch.dot(p, q)) for p, q in ((u, v), (u, u), (v, v)))
    wide = torch.promote_types(a.dtype, torch.float32)
    total = a.to(wide) * (1 - dot / (2 * uu) if uu else 1.0)
    return total.add_(b.to(wide), alpha=1 - dot / (2 * vv) if vv else 1.0).to(a.dtype)

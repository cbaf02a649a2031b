"""Adasum: adaptive summation of gradients (Maleki et al., arXiv 2006.02924).

Orthogonal gradients are added, parallel ones are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.gradients.reduction import Reduction


def adasum(a: Tensor, b: Tensor) -> Tensor:
    """Return (1 - a.b / 2|a|^2) a + (1 - a.b / 2|b|^2) b.

    If one of the tensors is zero, return the other. Dot products are summed in float64 over aligned
    copies, so that all ranks get the same bits. float16 and bfloat16 are combined in float32,
    complex numbers as pairs of real numbers.
    """
    if a.is_complex():
        return torch.view_as_complex(adasum(torch.view_as_real(a), torch.view_as_real(b)))
    u, v = (t.flatten().to(torch.float64, copy=True) for t in (a, b))
    dot, uu, vv = (float(torch.dot(p, q)) for p, q in ((u, v), (u, u), (v, v)))
    wide = torch.promote_types(a.dtype, torch.float32)
    total = a.to(wide) * (1 - dot / (2 * uu) if uu else 1.0)
    return total.add_(b.to(wide), alpha=1 - dot / (2 * vv) if vv else 1.0).to(a.dtype)


class AdasumGradients(Reduction):
    """Combines the gradient of each parameter over ranks: pairs first, then pairs of pairs.

    The number of ranks is a power of two. All gradients are sent together after backward.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], comm: Communicator) -> None:
        self._parameters, self._comm = parameters, comm

    def arm(self) -> None:
        """Nothing is sent during backward."""

    @torch.no_grad()
    def reduce(self) -> None:
        trained = [p for p in self._parameters if p.requires_grad]
        for kind in dict.fromkeys((p.dtype, p.device) for p in trained):
            self._reduce([p for p in trained if (p.dtype, p.device) == kind])

    def _reduce(self, parameters: list[nn.Parameter]) -> None:
        sizes = [p.numel() for p in parameters]
        flags = parameters[0].new_tensor([p.grad is not None for p in parameters])
        gradients = [p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in parameters]
        flat = self._combine(torch.cat([*gradients, flags]), [*sizes, len(sizes)])
        *totals, used = flat.split([*sizes, len(sizes)])
        for p, total, has_gradient in zip(parameters, totals, used.tolist(), strict=True):
            p.grad = total.view(p.shape) if has_gradient else None

    def _combine(self, own: Tensor, sizes: list[int]) -> Tensor:
        """Combine the consecutive tensors of `sizes` elements in `own`.

        The last one has the flags, of which the maximum is taken.
        """
        rank, distance = self._comm.rank, 1
        while distance < self._comm.size:
            partner = rank ^ distance
            other = self._comm.exchange(own, partner, partner)
            first, second = (own, other) if rank < partner else (other, own)
            *pairs, flags = zip(first.split(sizes), second.split(sizes), strict=True)
            own = torch.cat([*(adasum(a, b) for a, b in pairs), torch.maximum(*flags)])
            distance *= 2
        return own

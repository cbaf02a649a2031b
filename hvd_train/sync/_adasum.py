"""Gradients of all ranks by adaptive summation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hvd_train.adasum import adasum
from hvd_train.comm.base import Communicator
from hvd_train.fusion import Bucket


class AdasumGradients:
    """The adaptive sum over ranks of the gradients of `parameters`, each on its own: pairs of ranks, pairs of pairs and so on.

    The number of ranks is a power of two. A parameter that no rank has used keeps `grad = None`.
    """

    buckets: Sequence[Bucket] = ()

    def __init__(self, parameters: Sequence[nn.Parameter], comm: Communicator) -> None:
        self._parameters, self._comm = parameters, comm

    def arm(self) -> None:
        """Nothing goes on beside backward: all gradients travel together."""

    @torch.no_grad()
    def reduce(self) -> None:
        """Set the gradients; bitwise equal on every rank."""
        trained = [p for p in self._parameters if p.requires_grad]
        for kind in dict.fromkeys((p.dtype, p.device) for p in trained):
            self._reduce([p for p in trained if (p.dtype, p.device) == kind])

    def _reduce(self, parameters: list[nn.Parameter]) -> None:
        sizes = [p.numel() for p in parameters]
        flags = parameters[0].new_tensor([p.grad is not None for p in parameters])
        gradients = [p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in parameters]
        flat = self._combined(torch.cat([*gradients, flags]), [*sizes, len(sizes)])
        *totals, used = flat.split([*sizes, len(sizes)])
        for p, total, has_one in zip(parameters, totals, used.tolist(), strict=True):
            p.grad = total.view(p.shape) if has_one else None

    def _combined(self, own: Tensor, sizes: list[int]) -> Tensor:
        """The adaptive sum of each of the tensors of `sizes` that follow one another in `own`, but of the last the maximum."""
        rank, distance = self._comm.rank, 1
        while distance < self._comm.size:
            partner = rank ^ distance
            other = self._comm.exchange(own, partner, partner)
            first, second = (own, other) if rank < partner else (other, own)
            *pairs, flags = zip(first.split(sizes), second.split(sizes), strict=True)
            own = torch.cat([*(adasum(a, b) for a, b in pairs), torch.maximum(*flags)])
            distance *= 2
        return own

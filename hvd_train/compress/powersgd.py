"""Two thin factors for each matrix (PowerSGD, Vogels et al., arXiv 1905.13727); vectors and small matrices whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hvd_train.comm.base import Communicator, Work
from hvd_train.compress._residual import Residual
from hvd_train.compress.base import Layout
from hvd_train.options import Annotated, PositiveInt


def matrix(shape: Sequence[int], rank: int) -> tuple[int, int] | None:
    """Rows and columns of a parameter as a matrix; None where factors of `rank` would be no smaller than it."""
    rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (0, 0)
    return (rows, columns) if rank * (rows + columns) < rows * columns else None


class PowerSgdReducer:
    """M ~ P Q^T by one step of power iteration, Q beginning where the last step left it.

    P = orthonormal basis of sum(M_i Q), Q = sum(M_i^T P): both sums are all-reduced. Rank i has sent P P^T M_i, and its residual
    is the rest; the ranks' residuals add up to what the sum lacks.
    """

    def __init__(self, rank: int, layout: Layout, comm: Communicator) -> None:
        self._rank, self._layout, self._comm = rank, layout, comm
        self._matrices = [matrix(shape, rank) for shape in layout.shapes]
        self._residual = Residual(layout)
        self._q = _normal(rank * sum(m[1] for m in self._matrices if m), layout.device)

    def sum_async_(self, flat: Tensor) -> Work:
        gradients, flags = self._layout.split(flat)
        x = self._residual.added_to(gradients, flags)
        products = [m @ q for m, q in zip(self._of(x), self._columns(self._q), strict=True)]
        packed = _pack([*products, *self._vectors(x), flags.float()])
        summed = self._comm.all_reduce_async_(packed, "sum")

        def project() -> None:
            summed.wait()
            self._project(packed, x, flat)

        return self._comm.submit(project)

    def state(self) -> dict[str, Tensor]:
        return {"q": self._q, "residual": self._residual.kept}

    def _project(self, packed: Tensor, x: Tensor, flat: Tensor) -> None:
        """Second half of the iteration, once the ranks' M Q are summed."""
        gradients, flags = self._layout.split(flat)
        matrices, vectors = self._of(x), self._vectors(x)
        sizes = [m.shape[0] * self._rank for m in matrices] + [v.numel() for v in vectors] + [flags.numel()]
        parts = packed.split(sizes)
        bases = [torch.linalg.qr(p.view(-1, self._rank)).Q for p in parts[: len(matrices)]]
        q = _pack([m.T @ p for m, p in zip(matrices, bases, strict=True)]) if matrices else self._q
        sent = self._assembled(x, bases, q, vectors)
        if matrices:
            self._comm.all_reduce_(q, "sum")
        total = self._assembled(x, bases, q, parts[len(matrices) : -1])
        # A step whose gradient is not finite is taken back by loss scaling: it must not spoil those after it.
        if total.isfinite().all():
            self._q.copy_(q)
            self._residual.keep(gradients, sent)
        gradients.copy_(total)
        flags.copy_(parts[-1])

    def _assembled(self, like: Tensor, bases: Sequence[Tensor], q: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """The flat tensor of the matrices P Q^T and of `vectors`."""
        out = torch.empty_like(like)
        for m, p, columns in zip(self._of(out), bases, self._columns(q), strict=True):
            torch.matmul(p, columns.T, out=m)
        for own, vector in zip(self._vectors(out), vectors, strict=True):
            own.copy_(vector)
        return out

    def _of(self, flat: Tensor) -> list[Tensor]:
        pieces = flat.split(self._layout.sizes)
        return [piece.view(m) for piece, m in zip(pieces, self._matrices, strict=True) if m]

    def _vectors(self, flat: Tensor) -> list[Tensor]:
        return [piece for piece, m in zip(flat.split(self._layout.sizes), self._matrices, strict=True) if not m]

    def _columns(self, q: Tensor) -> list[Tensor]:
        pieces = q.split([m[1] * self._rank for m in self._matrices if m]) if q.numel() else ()
        return [piece.view(-1, self._rank) for piece in pieces]


class PowerSgd:
    whole = True
    per_bucket = True

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def reducer(self, layout: Layout, comm: Communicator) -> PowerSgdReducer:
        return PowerSgdReducer(self._rank, layout, comm)


def _normal(numel: int, device: torch.device) -> Tensor:
    """The same random numbers on every rank."""
    return torch.randn(numel, generator=torch.Generator().manual_seed(0)).to(device)


def _pack(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def create(*, rank: Annotated[PositiveInt, "columns of the factors: more bytes, smaller error"] = 4) -> PowerSgd:
    return PowerSgd(rank)

"""Sends two low-rank factors of each matrix (PowerSGD, Vogels et al., arXiv 1905.13727).

Vectors and small matrices are sent as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator, Work
from hvd_train.config.options import Annotated, PositiveInt
from hvd_train.gradients.compression.base import BucketLayout
from hvd_train.gradients.compression.residual import Residual


def matrix(shape: Sequence[int], rank: int) -> tuple[int, int] | None:
    """Return rows and columns of a parameter as a matrix.

    None if factors of `rank` would not be smaller.
    """
    rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (0, 0)
    return (rows, columns) if rank * (rows + columns) < rows * columns else None


class PowerSgdReducer:
    """Approximates M by P Q^T with one step of power iteration, from the Q of the last step.

    P = orthonormal basis of sum(M_i Q), Q = sum(M_i^T P): both sums are all-reduced. Rank i has
    sent P P^T M_i and keeps the rest as its residual. The residuals of all ranks add up to what the
    sum lacks.
    """

    def __init__(self, rank: int, layout: BucketLayout, comm: Communicator) -> None:
        self._rank, self._layout, self._comm = rank, layout, comm
        self._matrices = [matrix(shape, rank) for shape in layout.shapes]
        self._residual = Residual(layout)
        self._q = _normal(rank * sum(m[1] for m in self._matrices if m), layout.device)

    def sum_async_(self, flat: Tensor) -> Work:
        gradients, flags = self._layout.split(flat)
        x = self._residual.added_to(gradients, flags)
        products = [m @ q for m, q in zip(self._matrices_of(x), self._columns(self._q), strict=True)]
        packed = _pack([*products, *self._vectors(x), flags.float()])
        summed = self._comm.all_reduce_async_(packed, "sum")

        def project() -> None:
            summed.wait()
            self._project(packed, x, flat)

        return self._comm.submit(project)

    def state(self) -> dict[str, Tensor]:
        return {"q": self._q, "residual": self._residual.kept}

    def _project(self, packed: Tensor, x: Tensor, flat: Tensor) -> None:
        """Finish the iteration, once the products M_i Q of all ranks are summed."""
        gradients, flags = self._layout.split(flat)
        matrices, vectors = self._matrices_of(x), self._vectors(x)
        sizes = [m.shape[0] * self._rank for m in matrices] + [v.numel() for v in vectors] + [flags.numel()]
        parts = packed.split(sizes)
        bases = [torch.linalg.qr(p.view(-1, self._rank)).Q for p in parts[: len(matrices)]]
        q = _pack([m.T @ p for m, p in zip(matrices, bases, strict=True)]) if matrices else self._q
        sent = self._assembled(x, bases, q, vectors)
        if matrices:
            self._comm.all_reduce_(q, "sum")
        total = self._assembled(x, bases, q, parts[len(matrices) : -1])
        # Loss scaling skips a step that is not finite: it must not change Q or the residual.
        if total.isfinite().all():
            self._q.copy_(q)
            self._residual.keep(gradients, sent)
        gradients.copy_(total)
        flags.copy_(parts[-1])

    def _assembled(self, like: Tensor, bases: Sequence[Tensor], q: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        """Return the flat tensor of the matrices P Q^T and of `vectors`, shaped like `like`."""
        out = torch.empty_like(like)
        for m, p, columns in zip(self._matrices_of(out), bases, self._columns(q), strict=True):
            torch.matmul(p, columns.T, out=m)
        for own, vector in zip(self._vectors(out), vectors, strict=True):
            own.copy_(vector)
        return out

    def _matrices_of(self, flat: Tensor) -> list[Tensor]:
        tensors = flat.split(self._layout.sizes)
        return [tensor.view(m) for tensor, m in zip(tensors, self._matrices, strict=True) if m]

    def _vectors(self, flat: Tensor) -> list[Tensor]:
        return [tensor for tensor, m in zip(flat.split(self._layout.sizes), self._matrices, strict=True) if not m]

    def _columns(self, q: Tensor) -> list[Tensor]:
        factors = q.split([m[1] * self._rank for m in self._matrices if m]) if q.numel() else ()
        return [factor.view(-1, self._rank) for factor in factors]


class PowerSgd:
    whole = True
    per_bucket = True

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def reducer(self, layout: BucketLayout, comm: Communicator) -> PowerSgdReducer:
        return PowerSgdReducer(self._rank, layout, comm)


def _normal(numel: int, device: torch.device) -> Tensor:
    """Return normal random numbers, the same on every rank."""
    return torch.randn(numel, generator=torch.Generator().manual_seed(0)).to(device)


def _pack(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def create(*, rank: Annotated[PositiveInt, "columns of the factors: more bytes, smaller error"] = 4) -> PowerSgd:
    return PowerSgd(rank)

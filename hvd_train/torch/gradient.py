"""Gradients on their way through the reduction, and the groups of gradients that share a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.torch.mpi_ops import sparse_allreduce_async
from hvd_train.torch.operations import Average, start_allreduce, synchronize
from hvd_train.torch.process_sets import ProcessSet


@dataclass(frozen=True)
class ReductionOptions:
    """The reduction of gradients, as the options of DistributedOptimizer select it."""

    op: int
    predivide: float
    compression: Any
    sparse_as_dense: bool
    process_set: ProcessSet

    def start_(self, tensors: Sequence[Tensor], name: str, *, wake: bool) -> int:
        """Start the reduction of `tensors` in place by one request, and return a handle.

        Without `wake` the reduction begins when a thread waits for it.
        """
        scales = (1.0 / self.predivide, self.predivide) if self.op == Average else (1.0, 1.0)
        return start_allreduce(tensors, tensors, name, self.op, scales, self.process_set, tuple, wake=wake)


class Gradient:
    """The gradient of a parameter, and the number of backward passes until it is complete."""

    __slots__ = (
        "_context",
        "_finish",
        "_frozen",
        "_sent",
        "_sparse_dim",
        "group",
        "name",
        "parameter",
        "passes_left",
        "sparse_elsewhere",
    )

    group: GradientGroup
    _sent: Tensor

    def __init__(self, parameter: nn.Parameter, name: str) -> None:
        self.parameter, self.name = parameter, name
        self.passes_left = 0
        self._sparse_dim = 0
        self._frozen = False
        self._finish: Callable[[], Tensor] | None = None
        self.sparse_elsewhere = False
        """True if another rank has a sparse gradient. A rank without a gradient then sends
        sparse zeros."""

    @property
    def sparse(self) -> bool:
        return self.parameter.grad is not None and self.parameter.grad.is_sparse

    def prepare(self, reduction: ReductionOptions, *, dense: bool) -> Tensor | None:
        """Return the tensor to send with the request of the group.

        Without a gradient it is zeros. A sparse gradient starts a request of its own, and the
        result is None.
        """
        p = self.parameter
        self._finish = None
        self._frozen = p.grad is None and not p.requires_grad
        if p.grad is None:
            p.grad = torch.zeros_like(p).to_sparse(1) if self.sparse_elsewhere else torch.zeros_like(p)
        self._sparse_dim = p.grad.sparse_dim() if p.grad.is_sparse else 0
        if self._sparse_dim and not dense:
            self._finish = sparse_allreduce_async(
                p.grad, name=self.name, op=reduction.op, process_set=reduction.process_set
            )
            return None
        if self._sparse_dim:
            p.grad = p.grad.to_dense()
        sent: Tensor
        sent, self._context = reduction.compression.compress(p.grad)
        self._sent = sent.contiguous()
        return self._sent

    def finish(self, reduction: ReductionOptions) -> None:
        """Store the reduced gradient in the parameter."""
        p = self.parameter
        if self._finish is not None:
            p.grad, self._finish = self._finish(), None
            return
        result = reduction.compression.decompress(self._sent, self._context)
        if result is not p.grad:
            assert p.grad is not None, "the gradient was removed while it was being reduced"
            p.grad.copy_(result)
        if self._sparse_dim:
            p.grad = result.to_sparse(self._sparse_dim)
        if self._frozen:
            p.grad = None
        del self._sent


class GradientGroup:
    """Gradients that one request reduces. Gradients of a `fused` group are dense or made dense.

    A group that is the `only` one of its step starts when a thread waits for it: an earlier start
    gains nothing.
    """

    def __init__(self, gradients: Sequence[Gradient], name: str, *, fused: bool = False, only: bool = False) -> None:
        self.gradients, self._name, self._fused, self._only = gradients, name, fused, only
        self.missing = len(gradients)
        self._handle: int | None = None
        self.issued = False
        for gradient in gradients:
            gradient.group = self

    def issue(self, reduction: ReductionOptions) -> None:
        """Start the reduction of all gradients."""
        dense = self._fused or reduction.sparse_as_dense
        tensors = [g.prepare(reduction, dense=dense) for g in self.gradients]
        sent = [t for t in tensors if t is not None]
        if sent:
            self._handle = reduction.start_(sent, self._name, wake=not self._only)
        self.issued = True

    def collect(self, reduction: ReductionOptions) -> None:
        """Wait for the reduction and store the gradients."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            synchronize(handle)
        for gradient in self.gradients:
            gradient.finish(reduction)

    def expect(self, passes: int) -> None:
        """Reset the group: every gradient is complete after `passes` backward passes."""
        self.missing, self.issued, self._handle = len(self.gradients), False, None
        for gradient in self.gradients:
            gradient.passes_left = passes

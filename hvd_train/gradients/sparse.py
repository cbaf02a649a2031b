"""Sparse gradients, of embeddings whose steps use few rows: their sum over ranks, and Adam on their rows."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.ops import as_bytes

ALIGNMENT = 16
"""Bytes that the place of a tensor in a message is a multiple of, so that every dtype can be viewed there."""


def coalesced(gradient: Tensor) -> Tensor:
    """Return a sparse gradient in which each row comes once.

    It takes half the time of `Tensor.coalesce`.
    """
    if gradient.is_coalesced():
        return gradient
    return _sum_of_rows(gradient._indices()[0], gradient._values(), gradient.shape)


def values_of(gradient: Tensor) -> Tensor:
    """Return the values of a dense or a coalesced sparse gradient, in its own memory."""
    return gradient._values() if gradient.is_sparse else gradient


class SparseSum:
    """Sums the sparse gradients of `parameters` over ranks, which send their rows in one message."""

    def __init__(self, parameters: Sequence[nn.Parameter], comm: Communicator) -> None:
        self._parameters, self._comm = list(parameters), comm
        largest = max((len(p) for p in self._parameters), default=0)
        self._row = torch.int32 if largest < 2**31 else torch.int64

    def reduce(self) -> None:
        """Replace each gradient by its sum, or by None if no rank has a row of it; collective."""
        if not self._parameters:
            return
        if self._comm.size == 1:
            for p in self._parameters:
                p.grad = None if p.grad is None else coalesced(p.grad)
            return
        parts = [self._parts(message) for message in self._comm.all_gather(self._message())]
        for p, rows, values in zip(self._parameters, *map(self._joined, zip(*parts, strict=True)), strict=True):
            p.grad = _sum_of_rows(rows.to(p.device, torch.int64), values.to(p.device), p.shape) if len(rows) else None

    @staticmethod
    def _joined(of_ranks: Any) -> list[Tensor]:
        return [torch.cat(parts) for parts in zip(*of_ranks, strict=True)]

    def _message(self) -> Tensor:
        """Return the numbers of rows, then the rows, then their values of all parameters, as bytes."""
        parts = [_rows(p) for p in self._parameters]
        rows, values = [row.to("cpu", self._row) for row, _ in parts], [value.cpu() for _, value in parts]
        numbers = torch.tensor([len(of) for of in rows])
        places, end = _places([numbers, *rows, *values])
        message = torch.empty(end, dtype=torch.uint8)
        for at, part in zip(places, [numbers, *rows, *values], strict=True):
            content = as_bytes(part.contiguous().view(-1))
            message[at : at + len(content)] = content
        return message

    def _parts(self, message: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the rows and the values of each parameter in the message of a rank."""
        message = message.cpu()
        numbers = message[: 8 * len(self._parameters)].view(torch.int64).tolist()
        kinds = [(self._row, (n,)) for n in numbers]
        kinds += [(p.dtype, (n, *p.shape[1:])) for p, n in zip(self._parameters, numbers, strict=True)]
        sizes = [math.prod(shape) * kind.itemsize for kind, shape in kinds]
        starts = list(accumulate(map(_padded, sizes), initial=_padded(8 * len(numbers))))
        tensors = [
            message[at : at + size].view(kind).view(shape)
            for at, size, (kind, shape) in zip(starts, sizes, kinds, strict=False)
        ]
        return tensors[: len(numbers)], tensors[len(numbers) :]


def _rows(p: nn.Parameter) -> tuple[Tensor, Tensor]:
    """Return the rows of a gradient and their values. A row may come more than once."""
    if p.grad is None:
        return torch.empty(0, dtype=torch.int64), p.detach()[:0]
    return p.grad._indices()[0], p.grad._values()


def _places(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Return where tensors begin in a message, and its length."""
    *places, end = accumulate((_padded(t.numel() * t.element_size()) for t in tensors), initial=0)
    return places, end


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _sum_of_rows(rows: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    different, places = torch.unique(rows, return_inverse=True)
    sums = values.new_zeros(len(different), *values.shape[1:]).index_add_(0, places, values)
    return torch.sparse_coo_tensor(different[None], sums, shape, check_invariants=False, is_coalesced=True)


class _OfRows:
    """Makes Adam and AdamW update the rows that a step uses, where gradients are sparse.

    The moments of other rows stay as they are, and the decay of weights is that of the rows in the step.
    Without it, the result is that of `torch.optim.SparseAdam`, but eps has the place that it has in Adam.
    State has the same names as that of dense gradients. If dense gradients are updated by the fused kernel,
    they are row-major.
    """

    dense_step: Callable[[Any], Any]

    def step(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure is not None else None
        sparse = [(g, p, p.grad) for g in self.param_groups for p in g["params"] if _is_sparse(p.grad)]
        for _, p, _ in sparse:
            p.grad = None
        for p in (p for group in self.param_groups if group["fused"] for p in group["params"]):
            if p.grad is not None and not p.grad.is_contiguous():
                p.grad = p.grad.contiguous()  # the fused kernel takes the memory of all tensors for row-major
        if not sparse or any(p.grad is not None for group in self.param_groups for p in group["params"]):
            type(self).dense_step(self)
        for group, p, gradient in sparse:
            p.grad = gradient
            _update_rows(group, p, coalesced(gradient), self.state[p])
        return loss


class Adam(_OfRows, torch.optim.Adam):
    dense_step = inspect.unwrap(torch.optim.Adam.step)


class AdamW(_OfRows, torch.optim.AdamW):
    dense_step = inspect.unwrap(torch.optim.AdamW.step)


OF_ROWS: dict[str, type[torch.optim.Optimizer]] = {"Adam": Adam, "AdamW": AdamW}
"""Optimizers of torch that take dense gradients only, as they take sparse ones too."""
_DENSE_ONLY = ("amsgrad", "capturable", "differentiable")


def _is_sparse(gradient: Tensor | None) -> bool:
    return gradient is not None and gradient.is_sparse


def _update_rows(group: dict[str, Any], p: Tensor, gradient: Tensor, state: dict[str, Any]) -> None:
    refused = next((name for name in _DENSE_ONLY if group[name]), None)
    if refused:
        raise NotImplementedError(f"{refused} takes no sparse gradients")
    if not state:
        state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    state["step"] += 1
    step, (beta1, beta2), lr, decay = state["step"].item(), group["betas"], group["lr"], group["weight_decay"]
    rows, values = gradient._indices()[0], gradient._values()
    if group["maximize"]:
        values = -values
    old = p[rows] if decay else None
    if old is not None and not group["decoupled_weight_decay"]:
        values = values.add(old, alpha=decay)
    mean = state["exp_avg"][rows].lerp_(values, 1 - beta1)
    square = state["exp_avg_sq"][rows].mul_(beta2).addcmul_(values, values.conj(), value=1 - beta2)
    state["exp_avg"].index_copy_(0, rows, mean)
    state["exp_avg_sq"].index_copy_(0, rows, square)
    deviation = square.sqrt_().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    change = mean.div_(deviation).mul_(-lr / (1 - beta1**step))
    if old is not None and group["decoupled_weight_decay"]:
        change.sub_(old, alpha=lr * decay)
    p.index_add_(0, rows, change)

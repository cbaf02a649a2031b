"""The differentiable collective operations: an autograd function for each, with Horovod's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hvd_train.torch import operations, runtime
from hvd_train.torch.operations import Average, Sum, first, synchronize
from hvd_train.torch.process_sets import ProcessSet

_UNSCALED = 1.0, 1.0


def apply(function: Any, tensor: Tensor, *arguments: Any) -> Any:
    """Apply an operation to one tensor.

    Autograd is used only if a gradient is needed, which saves a third of the time of a small
    operation.
    """
    if tensor.requires_grad and torch.is_grad_enabled():
        return function.apply(tensor, *arguments)
    return function.forward(_Context(), tensor, *arguments)


def apply_grouped(function: Any, *arguments: Any) -> Any:
    """Apply an operation to a group of tensors, the last of `arguments`."""
    return function.apply(*arguments)


class HorovodAllreduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, name: str | None, op: int, pre: float, post: float, ps: ProcessSet) -> Tensor:
        ctx.settings = op, pre, post, ps
        output = torch.empty_like(tensor)
        handle = operations.start_allreduce([tensor], [output], name, op, (pre, post), ps, first, wake=False)
        return wait_for_tensor(handle)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return apply(HorovodAllreduce, gradient.contiguous(), None, *ctx.settings), None, None, None, None, None


class HorovodGroupedAllreduce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str | None, op: int, pre: float, post: float, ps: ProcessSet, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.settings = op, pre, post, ps
        outputs = [torch.empty_like(t) for t in tensors]
        handle = operations.start_allreduce(tensors, outputs, name, op, (pre, post), ps, tuple, wake=False)
        return _tensors(handle)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        inputs = [g.contiguous() for g in gradients]
        return None, None, None, None, None, *apply_grouped(HorovodGroupedAllreduce, None, *ctx.settings, *inputs)


class HorovodAllgather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, name: str | None, ps: ProcessSet) -> Tensor:
        ctx.settings = tensor.shape[0], ps
        return wait_for_tensor(operations.start_allgather([tensor], name, ps, first, wake=False))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        rows, ps = ctx.settings
        return *_own_rows([gradient], [rows], ps), None, None


class HorovodGroupedAllgather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str | None, ps: ProcessSet, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.settings = [t.shape[0] for t in tensors], ps
        return _tensors(operations.start_allgather(tensors, name, ps, tuple, wake=False))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows, ps = ctx.settings
        return None, None, *_own_rows(gradients, rows, ps)


class HorovodBroadcast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, root: int, name: str | None, ps: ProcessSet) -> Tensor:
        ctx.settings = root, ps
        return wait_for_tensor(operations.start_broadcast(tensor, torch.empty_like(tensor), root, name, ps, wake=False))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        root, ps = ctx.settings
        reduced = apply(HorovodAllreduce, gradient.contiguous(), None, Average, *_UNSCALED, ps)
        return reduced if runtime.executor().rank == root else reduced * 0, None, None, None


class HorovodAlltoall(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, splits: Any, name: str | None, ps: ProcessSet) -> Any:
        output, received = synchronize(operations.start_alltoall(tensor, splits, name, ps, wake=False))
        ctx.settings = received, ps
        if splits is None:
            return output
        ctx.mark_non_differentiable(received)
        return output, received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:  # type: ignore[override]
        received, ps = ctx.settings
        returned, _ = apply(HorovodAlltoall, gradient.contiguous(), received, None, ps)
        return returned, None, None, None


class HorovodReducescatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, name: str | None, op: int, ps: ProcessSet, pre: float, post: float) -> Tensor:
        ctx.settings = op, ps, pre * post
        return wait_for_tensor(operations.start_reducescatter([tensor], name, op, (pre, post), ps, first, wake=False))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (scaled,) = _scaled_gradients([gradient], *ctx.settings)
        return apply(HorovodAllgather, scaled, None, ctx.settings[1]), None, None, None, None, None


class HorovodGroupedReducescatter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str | None, op: int, ps: ProcessSet, pre: float, post: float, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.settings = op, ps, pre * post
        return _tensors(operations.start_reducescatter(tensors, name, op, (pre, post), ps, tuple, wake=False))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        scaled = _scaled_gradients(gradients, *ctx.settings)
        gathered = apply_grouped(HorovodGroupedAllgather, None, ctx.settings[1], *scaled)
        return None, None, None, None, None, *gathered


class _Context:
    """Stands for the context of autograd in a forward pass that needs no gradient."""

    settings: Any

    def mark_non_differentiable(self, *_: Tensor) -> None:
        pass


def _own_rows(gradients: Sequence[Tensor], rows: list[int], ps: ProcessSet) -> list[Tensor]:
    """Return the mean gradients over ranks of the rows that this rank contributed to a gather."""
    inputs = [g.contiguous() for g in gradients]
    reduced = apply_grouped(HorovodGroupedAllreduce, None, Average, *_UNSCALED, ps, *inputs)
    counts = apply(HorovodAllgather, torch.tensor([rows]), None, ps)
    starts = counts[: ps.rank()].sum(0).tolist()
    return [g.narrow(0, start, n) for g, start, n in zip(reduced, starts, rows, strict=True)]


def _scaled_gradients(gradients: Sequence[Tensor], op: int, ps: ProcessSet, scale: float) -> list[Tensor]:
    factor = scale * (ps.size() or 1 if op == Sum else 1)
    return [g.contiguous() * factor for g in gradients]


def wait_for_tensor(handle: int) -> Tensor:
    """Wait for the operation `handle` and return its only result."""
    result: Tensor = synchronize(handle)
    return result


def _tensors(handle: int) -> tuple[Tensor, ...]:
    result: tuple[Tensor, ...] = synchronize(handle)
    return result

"""The collective operations of Horovod's PyTorch API, on ddl's MPI engine.

The name of an operation identifies it on all ranks. Ranks may issue operations in any order and
from any thread. `*_async` functions return a handle for `synchronize` and `poll`; a trailing `_`
means in place. A failed operation raises HorovodInternalError with the same text on every rank.
Arguments that an operation does not support raise ValueError at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hvd_train.torch import autograd, operations
from hvd_train.torch.autograd import (
    HorovodAllgather,
    HorovodAllreduce,
    HorovodAlltoall,
    HorovodBroadcast,
    HorovodGroupedAllgather,
    HorovodGroupedAllreduce,
    HorovodGroupedReducescatter,
    HorovodReducescatter,
)
from hvd_train.torch.basics import (
    ccl_built,
    cross_rank,
    cross_size,
    cuda_built,
    ddl_built,
    gloo_built,
    gloo_enabled,
    init,
    is_homogeneous,
    is_initialized,
    local_rank,
    local_size,
    mpi_built,
    mpi_enabled,
    mpi_threads_supported,
    nccl_built,
    rank,
    rocm_built,
    shutdown,
    size,
    start_timeline,
    stop_timeline,
)
from hvd_train.torch.compression import Compression
from hvd_train.torch.exceptions import HorovodInternalError
from hvd_train.torch.operations import Adasum, Average, Max, Min, Product, Sum, first, poll, synchronize
from hvd_train.torch.process_sets import ProcessSet, add_process_set, global_process_set, remove_process_set

__all__ = [
    "Adasum", "Average", "HorovodInternalError", "Max", "Min", "ProcessSet", "Product", "Sum", "add_process_set",
    "allgather", "allgather_async", "allreduce", "allreduce_", "allreduce_async", "allreduce_async_", "alltoall",
    "alltoall_async", "barrier", "broadcast", "broadcast_", "broadcast_async", "broadcast_async_", "ccl_built",
    "cross_rank", "cross_size", "cuda_built", "ddl_built", "global_process_set", "gloo_built", "gloo_enabled",
    "grouped_allgather", "grouped_allgather_async", "grouped_allreduce", "grouped_allreduce_", "grouped_allreduce_async",
    "grouped_allreduce_async_", "grouped_reducescatter", "grouped_reducescatter_async", "init", "is_homogeneous",
    "is_initialized", "join", "local_rank", "local_size", "mpi_built", "mpi_enabled", "mpi_threads_supported",
    "nccl_built", "poll", "rank", "reducescatter", "reducescatter_async", "remove_process_set", "rocm_built", "shutdown",
    "size", "sparse_allreduce_async", "start_timeline", "stop_timeline", "synchronize",
]  # fmt: skip


def handle_average_backwards_compatibility(op: int | None, average: bool | None) -> int:
    """Return the reduction that `op` or the deprecated `average` selects."""
    if average is None:
        return Average if op is None else op
    if op is not None:
        raise ValueError("op and the deprecated average exclude each other; give op only")
    warnings.warn("average is deprecated: use op=hvd.Average or op=hvd.Sum", DeprecationWarning, stacklevel=3)
    return Average if average else Sum


def allreduce_async(
    tensor: Tensor, average: bool | None = None, name: str | None = None, op: int | None = None,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0, process_set: ProcessSet = global_process_set,
) -> int:  # fmt: skip
    """Start a reduction of `tensor` over ranks, by default the average, and return a handle.

    `tensor` does not change.
    """
    op = handle_average_backwards_compatibility(op, average)
    scales = prescale_factor, postscale_factor
    return operations.start_allreduce([tensor], [torch.empty_like(tensor)], name, op, scales, process_set, first)


def allreduce_async_(
    tensor: Tensor, average: bool | None = None, name: str | None = None, op: int | None = None,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0, process_set: ProcessSet = global_process_set,
) -> int:  # fmt: skip
    op = handle_average_backwards_compatibility(op, average)
    scales = prescale_factor, postscale_factor
    return operations.start_allreduce([tensor], [tensor], name, op, scales, process_set, first)


def allreduce_(
    tensor: Tensor, average: bool | None = None, name: str | None = None, op: int | None = None,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0, process_set: ProcessSet = global_process_set,
) -> Tensor:  # fmt: skip
    op = handle_average_backwards_compatibility(op, average)
    scales = prescale_factor, postscale_factor
    return autograd.wait_for_tensor(
        operations.start_allreduce([tensor], [tensor], name, op, scales, process_set, first, wake=False)
    )


def allreduce(
    tensor: Tensor, average: bool | None = None, name: str | None = None, compression: Any = Compression.none,
    op: int | None = None, prescale_factor: float = 1.0, postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Tensor:  # fmt: skip
    """Return the reduction of `tensor` over ranks. It is differentiable.

    `compression` is applied before the transfer and undone after it.
    """
    op = handle_average_backwards_compatibility(op, average)
    compressed, context = compression.compress(tensor)
    reduced = autograd.apply(HorovodAllreduce, compressed, name, op, prescale_factor, postscale_factor, process_set)
    result: Tensor = compression.decompress(reduced, context)
    return result


def grouped_allreduce_async(
    tensors: Sequence[Tensor], average: bool | None = None, name: str | None = None, op: int | None = None,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0, process_set: ProcessSet = global_process_set,
) -> int:  # fmt: skip
    """Start a reduction of all `tensors` together and return a handle of a tuple.

    The reduction starts when all ranks have issued the group.
    """
    op = handle_average_backwards_compatibility(op, average)
    scales = prescale_factor, postscale_factor
    return operations.start_allreduce(
        tensors, [torch.empty_like(t) for t in tensors], name, op, scales, process_set, tuple
    )


def grouped_allreduce_async_(
    tensors: Sequence[Tensor], average: bool | None = None, name: str | None = None, op: int | None = None,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0, process_set: ProcessSet = global_process_set,
) -> int:  # fmt: skip
    op = handle_average_backwards_compatibility(op, average)
    scales = prescale_factor, postscale_factor
    return operations.start_allreduce(tensors, tensors, name, op, scales, process_set, tuple)


def grouped_allreduce_(
    tensors: Sequence[Tensor], average: bool | None = None, name: str | None = None, op: int | None = None,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0, process_set: ProcessSet = global_process_set,
) -> tuple[Tensor, ...]:  # fmt: skip
    handle = grouped_allreduce_async_(tensors, average, name, op, prescale_factor, postscale_factor, process_set)
    reduced: tuple[Tensor, ...] = synchronize(handle)
    return reduced


def grouped_allreduce(
    tensors: Sequence[Tensor], average: bool | None = None, name: str | None = None, compression: Any = Compression.none,
    op: int | None = None, prescale_factor: float = 1.0, postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> list[Tensor]:  # fmt: skip
    op = handle_average_backwards_compatibility(op, average)
    compressed, contexts = _compress(tensors, compression)
    reduced = autograd.apply_grouped(
        HorovodGroupedAllreduce, name, op, prescale_factor, postscale_factor, process_set, *compressed
    )
    return [compression.decompress(t, c) for t, c in zip(reduced, contexts, strict=True)]


def sparse_allreduce_async(
    tensor: Tensor, name: str, op: int, process_set: ProcessSet = global_process_set
) -> Callable[[], Tensor]:
    """Start a reduction of a sparse tensor and return a function that waits for the result.

    Values and indices of all ranks are gathered. The values of equal indices add up.
    """
    indices = tensor._indices().transpose(0, 1).contiguous()
    indices_handle = allgather_async(indices, name=f"{name}.indices", process_set=process_set)
    # A dense gradient of another rank has the same name, so both operations fail and do not hang.
    values_handle = allgather_async(tensor._values(), name=name, process_set=process_set)

    def finish() -> Tensor:
        values, indices = synchronize(values_handle), synchronize(indices_handle)
        if op == Average:
            values = values / process_set.size()
        return torch.sparse_coo_tensor(indices.transpose(0, 1), values, tensor.shape, check_invariants=False)

    return finish


def allgather_async(tensor: Tensor, name: str | None = None, process_set: ProcessSet = global_process_set) -> int:
    """Start a concatenation over ranks and return a handle.

    Ranks may differ in the first dimension, along which the tensors are concatenated.
    """
    return operations.start_allgather([tensor], name, process_set, first)


def allgather(tensor: Tensor, name: str | None = None, process_set: ProcessSet = global_process_set) -> Tensor:
    if tensor.dim() == 0:
        raise IndexError("allgather needs a tensor of at least one dimension")
    gathered: Tensor = autograd.apply(HorovodAllgather, tensor, name, process_set)
    return gathered


def grouped_allgather_async(
    tensors: Sequence[Tensor], name: str | None = None, process_set: ProcessSet = global_process_set
) -> int:
    return operations.start_allgather(tensors, name, process_set, tuple)


def grouped_allgather(
    tensors: Sequence[Tensor], name: str | None = None, process_set: ProcessSet = global_process_set
) -> tuple[Tensor, ...]:
    gathered: tuple[Tensor, ...] = autograd.apply_grouped(HorovodGroupedAllgather, name, process_set, *tensors)
    return gathered


def broadcast_async(
    tensor: Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> int:
    """Start a broadcast of the tensor of `root_rank`, a rank of the world, and return a handle."""
    return operations.start_broadcast(tensor, torch.empty_like(tensor), root_rank, name, process_set)


def broadcast_async_(
    tensor: Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> int:
    return operations.start_broadcast(tensor, tensor, root_rank, name, process_set)


def broadcast_(
    tensor: Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Tensor:
    return autograd.wait_for_tensor(
        operations.start_broadcast(tensor, tensor, root_rank, name, process_set, wake=False)
    )


def broadcast(
    tensor: Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Tensor:
    received: Tensor = autograd.apply(HorovodBroadcast, tensor, root_rank, name, process_set)
    return received


def alltoall_async(
    tensor: Tensor, splits: Tensor | Sequence[int] | None = None, name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> int:  # fmt: skip
    """Start sending `splits[r]` rows to each rank r, by default equal numbers, and return a handle.

    The result is the received rows and the number of rows from each rank.
    """
    return operations.start_alltoall(tensor, splits, name, process_set)


def alltoall(
    tensor: Tensor, splits: Tensor | Sequence[int] | None = None, name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:  # fmt: skip
    """Return the rows that all ranks sent to this one; with `splits`, also their number per rank."""
    return autograd.apply(HorovodAlltoall, tensor, splits, name, process_set)


def reducescatter_async(
    tensor: Tensor, name: str | None = None, op: int = Average, process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0,
) -> int:  # fmt: skip
    """Start a reduction of which each rank gets a share of the rows, and return a handle.

    If the rows do not divide evenly, the first ranks get one more.
    """
    return operations.start_reducescatter([tensor], name, op, (prescale_factor, postscale_factor), process_set, first)


def reducescatter(
    tensor: Tensor, name: str | None = None, compression: Any = Compression.none, op: int = Average,
    process_set: ProcessSet = global_process_set, prescale_factor: float = 1.0, postscale_factor: float = 1.0,
) -> Tensor:  # fmt: skip
    compressed, context = compression.compress(tensor)
    mine = autograd.apply(HorovodReducescatter, compressed, name, op, process_set, prescale_factor, postscale_factor)
    result: Tensor = compression.decompress(mine, context)
    return result


def grouped_reducescatter_async(
    tensors: Sequence[Tensor], name: str | None = None, op: int = Average, process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0,
) -> int:  # fmt: skip
    return operations.start_reducescatter(tensors, name, op, (prescale_factor, postscale_factor), process_set, tuple)


def grouped_reducescatter(
    tensors: Sequence[Tensor], name: str | None = None, compression: Any = Compression.none, op: int = Average,
    process_set: ProcessSet = global_process_set, prescale_factor: float = 1.0, postscale_factor: float = 1.0,
) -> list[Tensor]:  # fmt: skip
    compressed, contexts = _compress(tensors, compression)
    mine = autograd.apply_grouped(
        HorovodGroupedReducescatter, name, op, process_set, prescale_factor, postscale_factor, *compressed
    )
    return [compression.decompress(t, c) for t, c in zip(mine, contexts, strict=True)]


def join(device: int = -1) -> int:
    """Take part in the all-reductions of other ranks with zeros until all ranks have joined.

    Return the rank that joined last. `device` has no effect.
    """
    return operations.join()


def barrier(process_set: ProcessSet = global_process_set) -> None:
    """Return when every rank of the process set has called this."""
    operations.barrier(process_set)


def _compress(tensors: Sequence[Tensor], compression: Any) -> tuple[list[Tensor], list[Any]]:
    pairs = [compression.compress(t) for t in tensors]
    return [t for t, _ in pairs], [c for _, c in pairs]

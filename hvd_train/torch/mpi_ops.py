"""The collective operations of Horovod's PyTorch API, on the MPI engine.

An operation is known by its name, and ranks may issue operations in any order, from any thread. `*_async` functions
return a handle for `synchronize` and `poll`; a trailing `_` means in place. A failed operation raises
HorovodInternalError with the same words on every rank; arguments that cannot be used raise ValueError at once.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hvd_train.torch import _runtime
from hvd_train.torch._entry import Entry
from hvd_train.torch._negotiation import ANY, ITEMSIZE, OPS, Request, Spec
from hvd_train.torch.compression import Compression
from hvd_train.torch.exceptions import NOT_INITIALIZED, HorovodInternalError
from hvd_train.torch.process_sets import (
    ProcessSet,
    add_process_set,
    global_process_set,
    is_communicator,
    members,
    register,
    remove_process_set,
)

if TYPE_CHECKING:
    from mpi4py import MPI

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

Average, Sum, Adasum, Min, Max, Product = range(len(OPS))

_NAMES = {getattr(torch, name): name for name in ITEMSIZE}

_Result = Callable[[Any], Any]
_handles: dict[int, tuple[Entry, _Result]] = {}
_numbers = itertools.count()
_requests: dict[tuple[object, ...], Request] = {}
_REMEMBERED = 10_000
"""Requests of one look that are kept, because the same will come again."""


def init(comm: Iterable[int] | MPI.Comm | None = None, process_sets: Iterable[ProcessSet] | str | None = None) -> None:
    """Start: with all ranks, a list of ranks, or those of an mpi4py communicator; a second call does nothing.

    `process_sets` are registered at once; "dynamic" allows `add_process_set` later.
    """
    if _runtime.started():
        return
    if isinstance(process_sets, str):
        if process_sets.lower() != "dynamic":
            raise ValueError(f"init: process_sets is a list or 'dynamic', got '{process_sets}'")
        os.environ["HOROVOD_DYNAMIC_PROCESS_SETS"] = "1"
        process_sets = None
    wanted = list(process_sets or ())
    if any(ps.ranks is None for ps in wanted) and not is_communicator(comm):
        raise NotImplementedError(
            "process sets of MPI communicators need init(comm=...) with a communicator of all ranks"
        )
    engine = _runtime.start(comm)
    _handles.clear()
    global_process_set.ranks = list(range(engine.size))
    try:
        for process_set in wanted:
            register(process_set, engine)
    except ValueError:
        shutdown()
        raise


def shutdown() -> None:
    """Leave; operations that other ranks wait for fail there. Before `init`, nothing."""
    _runtime.stop()
    _handles.clear()


def is_initialized() -> bool:
    return _runtime.started()


def rank() -> int:
    return _runtime.engine().rank


def size() -> int:
    return _runtime.engine().size


def local_rank() -> int:
    return _runtime.engine().world.local_rank


def local_size() -> int:
    return _runtime.engine().world.local_size


def cross_rank() -> int:
    return _runtime.engine().world.cross_rank


def cross_size() -> int:
    return _runtime.engine().world.cross_size


def is_homogeneous() -> bool:
    """Whether all hosts have the same number of ranks; False before `init`."""
    return _runtime.started() and _runtime.engine().homogeneous


def start_timeline(file_path: str, mark_cycles: bool = False) -> None:
    """Write what happens from now on to `file_path`, on rank 0, as a Chrome trace."""
    engine = _runtime.engine()
    if not engine.settings.timeline:
        raise ValueError("start_timeline: set HOROVOD_TIMELINE=DYNAMIC before init() to start timelines later")
    engine.start_timeline(file_path, mark_cycles)


def stop_timeline() -> None:
    _runtime.engine().stop_timeline()


def mpi_threads_supported() -> bool:
    """Whether other threads may use MPI beside this API."""
    _runtime.engine()
    from mpi4py import MPI

    return MPI.Query_thread() == MPI.THREAD_MULTIPLE


def mpi_enabled() -> bool:
    return _runtime.started()


def mpi_built() -> bool:
    return True


def gloo_enabled() -> bool:
    return False


def gloo_built() -> bool:
    return False


def nccl_built() -> int:
    return 0


def ddl_built() -> bool:
    return False


def ccl_built() -> bool:
    return False


def cuda_built() -> bool:
    return False


def rocm_built() -> bool:
    return False


def handle_average_backwards_compatibility(op: int | None, average: bool | None) -> int:
    """The reduction that the deprecated `average` stands for, where it is given instead of `op`."""
    if average is None:
        return Average if op is None else op
    if op is not None:
        raise ValueError("op and the deprecated average are both given; give op only")
    warnings.warn("average is deprecated: use op=hvd.Average or op=hvd.Sum", DeprecationWarning, stacklevel=3)
    return Average if average else Sum


def allreduce_async(
    tensor: Tensor, average: bool | None = None, name: str | None = None, op: int | None = None,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0, process_set: ProcessSet = global_process_set,
) -> int:  # fmt: skip
    """Reduce over ranks: `op` is Average by default; `tensor` stays as it is. Returns a handle."""
    op = handle_average_backwards_compatibility(op, average)
    scales = prescale_factor, postscale_factor
    return _all_reduce([tensor], [torch.empty_like(tensor)], name, op, scales, process_set, _first)


def allreduce_async_(
    tensor: Tensor, average: bool | None = None, name: str | None = None, op: int | None = None,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0, process_set: ProcessSet = global_process_set,
) -> int:  # fmt: skip
    op = handle_average_backwards_compatibility(op, average)
    scales = prescale_factor, postscale_factor
    return _all_reduce([tensor], [tensor], name, op, scales, process_set, _first)


def allreduce_(
    tensor: Tensor, average: bool | None = None, name: str | None = None, op: int | None = None,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0, process_set: ProcessSet = global_process_set,
) -> Tensor:  # fmt: skip
    op = handle_average_backwards_compatibility(op, average)
    scales = prescale_factor, postscale_factor
    return _tensor(_all_reduce([tensor], [tensor], name, op, scales, process_set, _first, ring=False))


def allreduce(
    tensor: Tensor, average: bool | None = None, name: str | None = None, compression: Any = Compression.none,
    op: int | None = None, prescale_factor: float = 1.0, postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Tensor:  # fmt: skip
    """The reduction over ranks, which autograd goes through; transmitted as `compression` makes it."""
    op = handle_average_backwards_compatibility(op, average)
    compressed, context = compression.compress(tensor)
    reduced = _through(HorovodAllreduce, compressed, name, op, prescale_factor, postscale_factor, process_set)
    result: Tensor = compression.decompress(reduced, context)
    return result


def grouped_allreduce_async(
    tensors: Sequence[Tensor], average: bool | None = None, name: str | None = None, op: int | None = None,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0, process_set: ProcessSet = global_process_set,
) -> int:  # fmt: skip
    """All of `tensors` together, once all ranks have all of them; a handle for a tuple."""
    op = handle_average_backwards_compatibility(op, average)
    scales = prescale_factor, postscale_factor
    return _all_reduce(tensors, [torch.empty_like(t) for t in tensors], name, op, scales, process_set, tuple)


def grouped_allreduce_async_(
    tensors: Sequence[Tensor], average: bool | None = None, name: str | None = None, op: int | None = None,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0, process_set: ProcessSet = global_process_set,
) -> int:  # fmt: skip
    op = handle_average_backwards_compatibility(op, average)
    scales = prescale_factor, postscale_factor
    return _all_reduce(tensors, tensors, name, op, scales, process_set, tuple)


def grouped_allreduce_(
    tensors: Sequence[Tensor], average: bool | None = None, name: str | None = None, op: int | None = None,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0, process_set: ProcessSet = global_process_set,
) -> tuple[Tensor, ...]:  # fmt: skip
    handle = grouped_allreduce_async_(tensors, average, name, op, prescale_factor, postscale_factor, process_set)
    return _tensors(handle)


def grouped_allreduce(
    tensors: Sequence[Tensor], average: bool | None = None, name: str | None = None, compression: Any = Compression.none,
    op: int | None = None, prescale_factor: float = 1.0, postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> list[Tensor]:  # fmt: skip
    op = handle_average_backwards_compatibility(op, average)
    compressed, contexts = _compressed(tensors, compression)
    reduced = _apply(HorovodGroupedAllreduce, name, op, prescale_factor, postscale_factor, process_set, *compressed)
    return [compression.decompress(t, c) for t, c in zip(reduced, contexts, strict=True)]


def sparse_allreduce_async(
    tensor: Tensor, name: str, op: int, process_set: ProcessSet = global_process_set
) -> Callable[[], Tensor]:
    """Gather the values of all ranks, summed where they meet; the result is a function that waits for it."""
    indices = tensor._indices().transpose(0, 1).contiguous()
    indices_handle = allgather_async(indices, name=f"{name}.indices", process_set=process_set)
    # By the name that a dense gradient of another rank has, so that both fail instead of waiting.
    values_handle = allgather_async(tensor._values(), name=name, process_set=process_set)

    def finish() -> Tensor:
        values, indices = synchronize(values_handle), synchronize(indices_handle)
        if op == Average:
            values = values / process_set.size()
        return torch.sparse_coo_tensor(indices.transpose(0, 1), values, tensor.shape, check_invariants=False)

    return finish


def allgather_async(tensor: Tensor, name: str | None = None, process_set: ProcessSet = global_process_set) -> int:
    """Concatenate over ranks, in the first dimension, in which ranks may differ. Returns a handle."""
    return _all_gather([tensor], name, process_set, _first)


def allgather(tensor: Tensor, name: str | None = None, process_set: ProcessSet = global_process_set) -> Tensor:
    if tensor.dim() == 0:
        raise IndexError("allgather needs a tensor of at least one dimension")
    gathered: Tensor = _through(HorovodAllgather, tensor, name, process_set)
    return gathered


def grouped_allgather_async(
    tensors: Sequence[Tensor], name: str | None = None, process_set: ProcessSet = global_process_set
) -> int:
    return _all_gather(tensors, name, process_set, tuple)


def grouped_allgather(
    tensors: Sequence[Tensor], name: str | None = None, process_set: ProcessSet = global_process_set
) -> tuple[Tensor, ...]:
    gathered: tuple[Tensor, ...] = _apply(HorovodGroupedAllgather, name, process_set, *tensors)
    return gathered


def broadcast_async(
    tensor: Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> int:
    """The tensor of rank `root_rank` of the world, on all ranks. Returns a handle."""
    return _broadcast(tensor, torch.empty_like(tensor), root_rank, name, process_set)


def broadcast_async_(
    tensor: Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> int:
    return _broadcast(tensor, tensor, root_rank, name, process_set)


def broadcast_(
    tensor: Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Tensor:
    return _tensor(_broadcast(tensor, tensor, root_rank, name, process_set, ring=False))


def broadcast(
    tensor: Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Tensor:
    received: Tensor = _through(HorovodBroadcast, tensor, root_rank, name, process_set)
    return received


def alltoall_async(
    tensor: Tensor, splits: Tensor | Sequence[int] | None = None, name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> int:  # fmt: skip
    """Send `splits[r]` rows to rank r, by default as many to each; a handle for what came, and how many from each."""
    return _all_to_all(tensor, splits, name, process_set)


def alltoall(
    tensor: Tensor, splits: Tensor | Sequence[int] | None = None, name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:  # fmt: skip
    """What ranks sent to this one; with `splits`, also how many rows came from each."""
    return _through(HorovodAlltoall, tensor, splits, name, process_set)


def reducescatter_async(
    tensor: Tensor, name: str | None = None, op: int = Average, process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0,
) -> int:  # fmt: skip
    """This rank's rows of the reduction: the first ranks have one more where they cannot have the same number."""
    return _reduce_scatter([tensor], name, op, (prescale_factor, postscale_factor), process_set, _first)


def reducescatter(
    tensor: Tensor, name: str | None = None, compression: Any = Compression.none, op: int = Average,
    process_set: ProcessSet = global_process_set, prescale_factor: float = 1.0, postscale_factor: float = 1.0,
) -> Tensor:  # fmt: skip
    compressed, context = compression.compress(tensor)
    mine = _through(HorovodReducescatter, compressed, name, op, process_set, prescale_factor, postscale_factor)
    result: Tensor = compression.decompress(mine, context)
    return result


def grouped_reducescatter_async(
    tensors: Sequence[Tensor], name: str | None = None, op: int = Average, process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0,
) -> int:  # fmt: skip
    return _reduce_scatter(tensors, name, op, (prescale_factor, postscale_factor), process_set, tuple)


def grouped_reducescatter(
    tensors: Sequence[Tensor], name: str | None = None, compression: Any = Compression.none, op: int = Average,
    process_set: ProcessSet = global_process_set, prescale_factor: float = 1.0, postscale_factor: float = 1.0,
) -> list[Tensor]:  # fmt: skip
    compressed, contexts = _compressed(tensors, compression)
    mine = _apply(HorovodGroupedReducescatter, name, op, process_set, prescale_factor, postscale_factor, *compressed)
    return [compression.decompress(t, c) for t, c in zip(mine, contexts, strict=True)]


def poll(handle: int) -> bool:
    """Whether `synchronize` would return at once."""
    if handle not in _handles:
        raise ValueError(f"there is no operation with the handle {handle}, or its result was taken")
    return _handles[handle][0].done


def synchronize(handle: int) -> Any:
    """Wait for an operation; its result, which is handed out once."""
    entry, result = _handles.pop(handle, (None, None))
    if entry is None or result is None:
        return None
    if not entry.done:
        _runtime.engine().wait(entry)
    if entry.error is not None:
        raise HorovodInternalError(entry.error)
    return result(entry.result)


def join(device: int = -1) -> int:
    """Take part in the all-reductions of others with zeros until all have joined; the rank that came last."""
    return synchronize(_issue(Request(Spec("join")), Entry([], []), _same, ring=False))  # type: ignore[no-any-return]


def barrier(process_set: ProcessSet = global_process_set) -> None:
    """Return once every rank of the process set is here."""
    _operable(process_set, "barrier")
    request = Request(Spec("barrier", process_set=process_set.process_set_id or 0))
    synchronize(_issue(request, Entry([], []), _same, ring=False))


class HorovodAllreduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, name: str | None, op: int, pre: float, post: float, ps: ProcessSet) -> Tensor:
        ctx.settings = op, pre, post, ps
        output = torch.empty_like(tensor)
        return _tensor(_all_reduce([tensor], [output], name, op, (pre, post), ps, _first, ring=False))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        op, pre, post, ps = ctx.settings
        reduced = allreduce(gradient.contiguous(), op=op, prescale_factor=pre, postscale_factor=post, process_set=ps)
        return reduced, None, None, None, None, None


class HorovodGroupedAllreduce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str | None, op: int, pre: float, post: float, ps: ProcessSet, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.settings = op, pre, post, ps
        outputs = [torch.empty_like(t) for t in tensors]
        return _tensors(_all_reduce(tensors, outputs, name, op, (pre, post), ps, tuple, ring=False))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        op, pre, post, ps = ctx.settings
        inputs = [g.contiguous() for g in gradients]
        reduced = grouped_allreduce(inputs, op=op, prescale_factor=pre, postscale_factor=post, process_set=ps)
        return None, None, None, None, None, *reduced


class HorovodAllgather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, name: str | None, ps: ProcessSet) -> Tensor:
        ctx.settings = tensor.shape[0], ps
        return _tensor(_all_gather([tensor], name, ps, _first, ring=False))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        rows, ps = ctx.settings
        return *_own_rows([gradient], [rows], ps), None, None


class HorovodGroupedAllgather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str | None, ps: ProcessSet, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.settings = [t.shape[0] for t in tensors], ps
        return _tensors(_all_gather(tensors, name, ps, tuple, ring=False))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        rows, ps = ctx.settings
        return None, None, *_own_rows(gradients, rows, ps)


class HorovodBroadcast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, root: int, name: str | None, ps: ProcessSet) -> Tensor:
        ctx.settings = root, ps
        return _tensor(_broadcast(tensor, torch.empty_like(tensor), root, name, ps, ring=False))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        root, ps = ctx.settings
        reduced = allreduce(gradient.contiguous(), op=Average, process_set=ps)
        return reduced if rank() == root else reduced * 0, None, None, None


class HorovodAlltoall(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, splits: Any, name: str | None, ps: ProcessSet) -> Any:
        output, received = synchronize(_all_to_all(tensor, splits, name, ps, ring=False))
        ctx.settings = received, ps
        if splits is None:
            return output
        ctx.mark_non_differentiable(received)
        return output, received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:  # type: ignore[override]
        received, ps = ctx.settings
        returned, _ = alltoall(gradient.contiguous(), splits=received, process_set=ps)
        return returned, None, None, None


class HorovodReducescatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, name: str | None, op: int, ps: ProcessSet, pre: float, post: float) -> Tensor:
        ctx.settings = op, ps, pre * post
        return _tensor(_reduce_scatter([tensor], name, op, (pre, post), ps, _first, ring=False))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        (scaled,) = _scattered_gradients([gradient], *ctx.settings)
        return allgather(scaled, process_set=ctx.settings[1]), None, None, None, None, None


class HorovodGroupedReducescatter(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str | None, op: int, ps: ProcessSet, pre: float, post: float, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.settings = op, ps, pre * post
        return _tensors(_reduce_scatter(tensors, name, op, (pre, post), ps, tuple, ring=False))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        scaled = _scattered_gradients(gradients, *ctx.settings)
        return None, None, None, None, None, *grouped_allgather(scaled, process_set=ctx.settings[1])


def _all_reduce(
    tensors: Sequence[Tensor], outputs: Sequence[Tensor], name: str | None, op: int, scales: tuple[float, float],
    process_set: ProcessSet, result: _Result, *, ring: bool = True,
) -> int:  # fmt: skip
    if not 0 <= op < len(OPS):
        raise ValueError(f"allreduce: no reduction {op!r}; expected hvd.{', hvd.'.join(OPS)}")
    if op == Adasum:
        _check_adasum(tensors, process_set)
    if process_set is not global_process_set:
        _operable(process_set, "allreduce")
    request = _request("allreduce", name, process_set, tensors, op, scales)
    return _issue(request, Entry(list(tensors), list(outputs)), result, ring)


def _reduce_scatter(
    tensors: Sequence[Tensor], name: str | None, op: int, scales: tuple[float, float],
    process_set: ProcessSet, result: _Result, *, ring: bool = True,
) -> int:  # fmt: skip
    _operable(process_set, "reducescatter")
    if any(t.dim() == 0 for t in tensors):
        raise ValueError("reducescatter needs tensors of at least one dimension, and cannot divide a scalar")
    if op not in (Average, Sum):
        raise HorovodInternalError("reducescatter is possible with op=hvd.Average and op=hvd.Sum only")
    request = _request("reducescatter", name, process_set, tensors, op, scales)
    return _issue(request, Entry(list(tensors), []), result, ring)


def _all_gather(
    tensors: Sequence[Tensor], name: str | None, process_set: ProcessSet, result: _Result, *, ring: bool = True
) -> int:
    _operable(process_set, "allgather")
    return _issue(_request("allgather", name, process_set, tensors), Entry(list(tensors), []), result, ring)


def _broadcast(
    tensor: Tensor, output: Tensor, root: int, name: str | None, process_set: ProcessSet, *, ring: bool = True
) -> int:
    ranks = _operable(process_set, "broadcast")
    if root not in ranks:
        raise ValueError(f"broadcast: root_rank {root} is none of the ranks {list(ranks)} of the process set")
    request = _request("broadcast", name, process_set, [tensor], root=root)
    return _issue(request, Entry([tensor], [output]), _first, ring)


def _all_to_all(
    tensor: Tensor,
    splits: Tensor | Sequence[int] | None,
    name: str | None,
    process_set: ProcessSet,
    *,
    ring: bool = True,
) -> int:
    _runtime.engine()
    ranks = _operable(process_set, "alltoall")
    request = _request("alltoall", name, process_set, [tensor])
    rows = _splits(tensor, splits, len(ranks))
    device = splits.device if isinstance(splits, Tensor) else "cpu"

    def result(moved: tuple[Tensor, list[int]]) -> tuple[Tensor, Tensor]:
        return moved[0], torch.tensor(moved[1], dtype=torch.int32, device=device)

    return _issue(request, Entry([tensor], [], rows), result, ring)


def _splits(tensor: Tensor, splits: Tensor | Sequence[int] | None, ranks: int) -> list[int]:
    """Rows for each rank; ValueError where they do not fit `tensor`."""
    if tensor.dim() == 0:
        raise ValueError("alltoall needs a tensor of at least one dimension")
    rows = tensor.shape[0]
    if splits is None or len(splits) == 0:
        if rows % ranks:
            raise ValueError(f"alltoall: {rows} rows cannot be dealt to {ranks} ranks equally; give splits")
        return [rows // ranks] * ranks
    if isinstance(splits, Tensor):
        if splits.dim() != 1 or splits.dtype != torch.int32:
            raise ValueError(f"alltoall: splits are int32 in one dimension, got {splits.dtype} in {splits.dim()}")
        splits = splits.tolist()
    if len(splits) != ranks or min(splits) < 0 or sum(splits) > rows:
        raise ValueError(f"alltoall: expected {ranks} splits of at most {rows} rows in all, got {list(splits)}")
    return list(splits)


_MOVABLE = frozenset(_NAMES)
_SUMMABLE = _MOVABLE - {torch.bool}
_OF_BOOL = frozenset({"Min", "Max", "Product"})
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def _request(
    kind: str, name: str | None, process_set: ProcessSet, tensors: Sequence[Tensor], op: int = 0,
    scales: tuple[float, float] = (1.0, 1.0), root: int = 0,
) -> Request:  # fmt: skip
    """What to ask for; the object of the last time where the same was asked for before. ValueError says what cannot be."""
    looks: list[object] = [kind, name, process_set.process_set_id, op, scales, root]
    for x in tensors:
        looks += (x.dtype, x.shape, x.device, x.layout, x.is_contiguous())
    asked = tuple(looks)
    request = _requests.get(asked)
    if request is None:
        _check(kind, tensors, op)
        spec = Spec(
            kind,
            "" if name is None else str(name),
            process_set.process_set_id or 0,
            tuple(_NAMES[x.dtype] for x in tensors),
            tuple(_agreed_shape(kind, x) for x in tensors),
            op,
            float(scales[0]),
            float(scales[1]),
            root,
            tensors[0].device.type,
        )
        if len(_requests) >= _REMEMBERED:
            _requests.clear()
        request = _requests[asked] = Request(spec)
    return request


def _check(kind: str, tensors: Sequence[Tensor], op: int) -> None:
    if not tensors:
        raise ValueError(f"{kind}: there are no tensors; give at least one")
    summed = kind in {"allreduce", "reducescatter"} and OPS[op] not in _OF_BOOL
    dtypes = _SUMMABLE if summed else _MOVABLE
    for x in tensors:
        if x.dtype not in dtypes or x.layout != torch.strided:
            known = ", ".join(sorted(_NAMES[d] for d in dtypes))
            raise ValueError(f"{kind} of {x.type()} is not supported; expected a dense tensor of one of {known}")
        if not x.is_contiguous():
            raise ValueError(f"{kind} needs a contiguous tensor: call .contiguous() first")


def _agreed_shape(kind: str, x: Tensor) -> tuple[int, ...]:
    """The shape, without the rows where ranks may have different numbers of them."""
    rows_differ = kind in {"allgather", "alltoall"} and x.dim() > 0
    return (ANY, *x.shape[1:]) if rows_differ else tuple(x.shape)


def _issue(request: Request, entry: Entry, result: _Result, ring: bool = True) -> int:
    engine = _runtime.running()
    if engine is None:
        raise HorovodInternalError(NOT_INITIALIZED)
    engine.submit(request, entry, ring=ring)
    handle = next(_numbers)
    _handles[handle] = entry, result
    return handle


def _operable(process_set: ProcessSet, what: str) -> tuple[int, ...]:
    if not _runtime.started():
        raise HorovodInternalError(NOT_INITIALIZED)
    return members(process_set, what)


def _check_adasum(tensors: Sequence[Tensor], process_set: ProcessSet) -> None:
    if process_set is not global_process_set:
        raise NotImplementedError("Adasum is possible for the global process set only")
    if _runtime.started() and size() & (size() - 1):
        raise NotImplementedError(f"Adasum combines pairs: it needs 2, 4, 8, ... ranks, and there are {size()}")
    if any(t.dtype not in _FLOATS for t in tensors):
        raise ValueError(f"Adasum is possible for floating point numbers only, got {tensors[0].type()}")


def _through(function: Any, tensor: Tensor, *arguments: Any) -> Any:
    """Through autograd where it is wanted: leaving it out saves a third of a small operation."""
    if tensor.requires_grad and torch.is_grad_enabled():
        return _apply(function, tensor, *arguments)
    return function.forward(_Context(), tensor, *arguments)


def _apply(function: Any, *arguments: Any) -> Any:
    return function.apply(*arguments)


class _Context:
    """What a forward pass without a backward one writes to."""

    settings: Any

    def mark_non_differentiable(self, *_: Tensor) -> None:
        pass


def _own_rows(gradients: Sequence[Tensor], rows: list[int], process_set: ProcessSet) -> list[Tensor]:
    """Of gradients of what was gathered: the mean over ranks of the rows that this rank gave."""
    reduced = grouped_allreduce([g.contiguous() for g in gradients], op=Average, process_set=process_set)
    counts = allgather(torch.tensor([rows]), process_set=process_set)
    starts = counts[: process_set.rank()].sum(0).tolist()
    return [g.narrow(0, start, n) for g, start, n in zip(reduced, starts, rows, strict=True)]


def _scattered_gradients(gradients: Sequence[Tensor], op: int, process_set: ProcessSet, scale: float) -> list[Tensor]:
    factor = scale * (process_set.size() or 1 if op == Sum else 1)
    return [g.contiguous() * factor for g in gradients]


def _compressed(tensors: Sequence[Tensor], compression: Any) -> tuple[list[Tensor], list[Any]]:
    pairs = [compression.compress(t) for t in tensors]
    return [t for t, _ in pairs], [c for _, c in pairs]


def _tensor(handle: int) -> Tensor:
    result: Tensor = synchronize(handle)
    return result


def _tensors(handle: int) -> tuple[Tensor, ...]:
    result: tuple[Tensor, ...] = synchronize(handle)
    return result


def _first(results: list[Any]) -> Any:
    return results[0]


def _same(result: Any) -> Any:
    return result

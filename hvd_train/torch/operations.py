"""Start of collective operations: checks arguments, issues requests and returns handles.

Every `start_*` function returns a handle for `synchronize` and `poll`. `result` turns the results
of the executor into the value that `synchronize` returns. `wake=False` is for callers that wait at
once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hvd_train.torch import runtime
from hvd_train.torch.entry import Entry
from hvd_train.torch.exceptions import NOT_INITIALIZED, HorovodInternalError
from hvd_train.torch.process_sets import ProcessSet, global_process_set, members
from hvd_train.torch.requests import ANY, ITEMSIZE, OPS, Request, Spec

Average, Sum, Adasum, Min, Max, Product = range(len(OPS))

DTYPE_NAMES = {getattr(torch, name): name for name in ITEMSIZE}
"""Names of the dtypes that operations can move."""

_REDUCIBLE = frozenset(DTYPE_NAMES) - {torch.bool}
_BOOL_OPS = frozenset({"Min", "Max", "Product"})
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})

Result = Callable[[Any], Any]
_handles: dict[int, tuple[Entry, Result]] = {}
_numbers = itertools.count()
_requests: dict[tuple[object, ...], Request] = {}
_CACHED_REQUESTS = 10_000
"""Largest number of requests that are cached, because training repeats the same ones."""


def synchronize(handle: int) -> Any:
    """Wait for an operation and return its result.

    A second call with the same handle returns None.
    """
    entry, result = _handles.pop(handle, (None, None))
    if entry is None or result is None:
        return None
    if not entry.done:
        runtime.executor().wait(entry)
    if entry.error is not None:
        raise HorovodInternalError(entry.error)
    return result(entry.result)


def poll(handle: int) -> bool:
    """Return True if `synchronize` would return at once."""
    if handle not in _handles:
        raise ValueError(f"poll: no operation has the handle {handle}, or synchronize() has returned its result")
    return _handles[handle][0].done


def forget() -> None:
    """Drop all handles."""
    _handles.clear()


def join() -> int:
    """Take part in the all-reductions of other ranks with zeros until all ranks have joined.

    Return the rank that joined last.
    """
    return synchronize(_issue(Request(Spec("join")), Entry([], []), same, wake=False))  # type: ignore[no-any-return]


def barrier(process_set: ProcessSet) -> None:
    """Return when every rank of the process set has called this."""
    _members(process_set, "barrier")
    request = Request(Spec("barrier", process_set=process_set.process_set_id or 0))
    synchronize(_issue(request, Entry([], []), same, wake=False))


def start_allreduce(
    tensors: Sequence[Tensor], outputs: Sequence[Tensor], name: str | None, op: int, scales: tuple[float, float],
    process_set: ProcessSet, result: Result, *, wake: bool = True,
) -> int:  # fmt: skip
    """Start the reduction of `tensors` into `outputs`, which may be the same tensors.

    `scales` are the factors before and after the reduction.
    """
    if not 0 <= op < len(OPS):
        raise ValueError(f"allreduce: no reduction {op!r}; expected hvd.{', hvd.'.join(OPS)}")
    if op == Adasum:
        _check_adasum(tensors, process_set)
    if process_set is not global_process_set:
        _members(process_set, "allreduce")
    request = _request("allreduce", name, process_set, tensors, op, scales)
    return _issue(request, Entry(list(tensors), list(outputs)), result, wake)


def start_reducescatter(
    tensors: Sequence[Tensor], name: str | None, op: int, scales: tuple[float, float],
    process_set: ProcessSet, result: Result, *, wake: bool = True,
) -> int:  # fmt: skip
    _members(process_set, "reducescatter")
    if any(t.dim() == 0 for t in tensors):
        raise ValueError("reducescatter needs tensors of at least one dimension, and cannot divide a scalar")
    if op not in (Average, Sum):
        raise HorovodInternalError("reducescatter supports op=hvd.Average and op=hvd.Sum only")
    request = _request("reducescatter", name, process_set, tensors, op, scales)
    return _issue(request, Entry(list(tensors), []), result, wake)


def start_allgather(
    tensors: Sequence[Tensor], name: str | None, process_set: ProcessSet, result: Result, *, wake: bool = True
) -> int:
    _members(process_set, "allgather")
    return _issue(_request("allgather", name, process_set, tensors), Entry(list(tensors), []), result, wake)


def start_broadcast(
    tensor: Tensor, output: Tensor, root: int, name: str | None, process_set: ProcessSet, *, wake: bool = True
) -> int:
    ranks = _members(process_set, "broadcast")
    if root not in ranks:
        raise ValueError(f"broadcast: root_rank {root} is not in the process set of ranks {list(ranks)}")
    request = _request("broadcast", name, process_set, [tensor], root=root)
    return _issue(request, Entry([tensor], [output]), first, wake)


def start_alltoall(
    tensor: Tensor,
    splits: Tensor | Sequence[int] | None,
    name: str | None,
    process_set: ProcessSet,
    *,
    wake: bool = True,
) -> int:
    runtime.executor()
    ranks = _members(process_set, "alltoall")
    request = _request("alltoall", name, process_set, [tensor])
    rows = _splits(tensor, splits, len(ranks))
    device = splits.device if isinstance(splits, Tensor) else "cpu"

    def result(moved: tuple[Tensor, list[int]]) -> tuple[Tensor, Tensor]:
        return moved[0], torch.tensor(moved[1], dtype=torch.int32, device=device)

    return _issue(request, Entry([tensor], [], rows), result, wake)


def first(results: list[Any]) -> Any:
    return results[0]


def same(result: Any) -> Any:
    return result


def _splits(tensor: Tensor, splits: Tensor | Sequence[int] | None, ranks: int) -> list[int]:
    """Return the number of rows for each rank. Raise ValueError if they do not fit `tensor`."""
    if tensor.dim() == 0:
        raise ValueError("alltoall needs a tensor of at least one dimension")
    rows = tensor.shape[0]
    if splits is None or len(splits) == 0:
        if rows % ranks:
            raise ValueError(f"alltoall: {rows} rows cannot be divided equally among {ranks} ranks; give splits")
        return [rows // ranks] * ranks
    if isinstance(splits, Tensor):
        if splits.dim() != 1 or splits.dtype != torch.int32:
            raise ValueError(
                f"alltoall: splits: expected int32 in one dimension, got {splits.dtype} in {splits.dim()} dimensions"
            )
        splits = splits.tolist()
    if len(splits) != ranks or min(splits) < 0 or sum(splits) > rows:
        raise ValueError(f"alltoall: expected {ranks} splits of at most {rows} rows in all, got {list(splits)}")
    return list(splits)


def _request(
    kind: str, name: str | None, process_set: ProcessSet, tensors: Sequence[Tensor], op: int = 0,
    scales: tuple[float, float] = (1.0, 1.0), root: int = 0,
) -> Request:  # fmt: skip
    """Return the request, from the cache if the same one was made before.

    Raise ValueError for tensors that the operation does not support.
    """
    key: list[object] = [kind, name, process_set.process_set_id, op, scales, root]
    for x in tensors:
        key += (x.dtype, x.shape, x.device, x.layout, x.is_contiguous())
    cache_key = tuple(key)
    request = _requests.get(cache_key)
    if request is None:
        _check(kind, tensors, op)
        spec = Spec(
            kind,
            "" if name is None else str(name),
            process_set.process_set_id or 0,
            tuple(DTYPE_NAMES[x.dtype] for x in tensors),
            tuple(_agreed_shape(kind, x) for x in tensors),
            op,
            float(scales[0]),
            float(scales[1]),
            root,
            tensors[0].device.type,
        )
        if len(_requests) >= _CACHED_REQUESTS:
            _requests.clear()
        request = _requests[cache_key] = Request(spec)
    return request


def _check(kind: str, tensors: Sequence[Tensor], op: int) -> None:
    if not tensors:
        raise ValueError(f"{kind}: expected at least one tensor, got none")
    summed = kind in {"allreduce", "reducescatter"} and OPS[op] not in _BOOL_OPS
    dtypes = _REDUCIBLE if summed else DTYPE_NAMES.keys()
    for x in tensors:
        if x.dtype not in dtypes or x.layout != torch.strided:
            names = ", ".join(sorted(DTYPE_NAMES[d] for d in dtypes))
            raise ValueError(f"{kind} of {x.type()} is not supported; expected a dense tensor of one of {names}")
        if not x.is_contiguous():
            raise ValueError(f"{kind} needs a contiguous tensor: call .contiguous() first")


def _agreed_shape(kind: str, x: Tensor) -> tuple[int, ...]:
    """Return the shape, with ANY for the first dimension if it may differ between ranks."""
    rows_differ = kind in {"allgather", "alltoall"} and x.dim() > 0
    return (ANY, *x.shape[1:]) if rows_differ else tuple(x.shape)


def _issue(request: Request, entry: Entry, result: Result, wake: bool = True) -> int:
    executor = runtime.running()
    if executor is None:
        raise HorovodInternalError(NOT_INITIALIZED)
    executor.submit(request, entry, wake=wake)
    handle = next(_numbers)
    _handles[handle] = entry, result
    return handle


def _members(process_set: ProcessSet, what: str) -> tuple[int, ...]:
    if not runtime.started():
        raise HorovodInternalError(NOT_INITIALIZED)
    return members(process_set, what)


def _check_adasum(tensors: Sequence[Tensor], process_set: ProcessSet) -> None:
    if process_set is not global_process_set:
        raise NotImplementedError("Adasum supports the global process set only")
    executor = runtime.running()
    if executor is not None and executor.size & (executor.size - 1):
        raise NotImplementedError(f"Adasum needs 2, 4, 8, ... ranks, because it combines pairs; got {executor.size}")
    if any(t.dtype not in _FLOATS for t in tensors):
        raise ValueError(f"Adasum supports floating point tensors only, got {tensors[0].type()}")

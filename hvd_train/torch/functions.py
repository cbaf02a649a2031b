"""Broadcasts and gathers of parameters, optimizer states and Python objects."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn

from hvd_train.state.model_state import sparse_weights
from hvd_train.torch.mpi_ops import allgather, broadcast_, broadcast_async_, rank, synchronize
from hvd_train.torch.operations import DTYPE_NAMES
from hvd_train.torch.process_sets import ProcessSet, global_process_set


def broadcast_parameters(params: Mapping[str, Any] | list[Any], root_rank: int) -> None:
    """Overwrite tensors with those of `root_rank`.

    `params` is a state_dict, a list of (name, tensor) pairs, or a list of tensors. Tensors are
    dense and of any dtype. Raise ValueError for anything else.
    """
    if isinstance(params, dict):
        pairs: list[tuple[str | None, Tensor]] = sorted(params.items())
    elif isinstance(params, list):
        pairs = [p if isinstance(p, tuple) else (None, p) for p in params]
    else:
        raise ValueError(
            "broadcast_parameters: params: expected a dict of names and tensors, or a list of pairs or tensors, got "
            f"{type(params).__name__}; give model.state_dict() or list(model.named_parameters())"
        )
    for name, tensor in pairs:
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            what = f"a sparse {tensor.type()}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(
                f"broadcast_parameters: {'an entry' if name is None else repr(name)}: expected a dense tensor, got {what}; "
                "leave it out and broadcast it with broadcast_object"
            )
    _broadcast_(pairs, root_rank)


def broadcast_optimizer_state(optimizer: torch.optim.Optimizer, root_rank: int, model: nn.Module | None = None) -> None:
    """Overwrite the options and the state of `optimizer` with those of `root_rank`.

    A rank without state gets the state, too. If the optimizer has no state yet, parameters that are
    trained and have no gradient get a gradient of zeros, as in Horovod. Gradients of the sparse
    embeddings of `model`, and all gradients of SparseAdam, are sparse. Raise ValueError for LBFGS,
    whose state cannot be broadcast.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("the state of torch.optim.LBFGS cannot be broadcast")
    if not optimizer.state_dict()["state"]:
        _zero_gradients(optimizer, model)
    shapes = _map(lambda t: t.to("meta"), optimizer.state_dict())
    shapes = broadcast_object(shapes, root_rank, name="optimizer_state")
    if rank() != root_rank:
        optimizer.load_state_dict(_map(lambda t: torch.zeros_like(t, device="cpu"), shapes))
        for i, live in optimizer.state_dict()["state"].items():
            # load_state_dict casts state to the dtype of the parameter, which may differ.
            live.update({k: live[k].to(t.dtype) for k, t in shapes["state"][i].items() if isinstance(t, Tensor)})
    tensors: list[Tensor] = []
    _map(tensors.append, optimizer.state_dict())
    _broadcast_([(f"optimizer_state.{i}", t) for i, t in enumerate(tensors)], root_rank)


def broadcast_object(
    obj: Any, root_rank: int = 0, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Any:
    """Return the object of `root_rank` on every rank. The objects of other ranks are ignored."""
    data = _pickled(obj) if rank() == root_rank else torch.empty(0, dtype=torch.uint8)
    length = broadcast_(torch.tensor([data.numel()]), root_rank, _part(name, "length"), process_set)
    if rank() != root_rank:
        data = torch.empty(int(length), dtype=torch.uint8)
    broadcast_(data, root_rank, _part(name, "data"), process_set)
    return obj if rank() == root_rank else _unpickled(data)


def allgather_object(obj: Any, name: str | None = None) -> list[Any]:
    """Return the objects of all ranks in rank order."""
    data = _pickled(obj)
    lengths = allgather(torch.tensor([data.numel()]), _part(name, "lengths")).tolist()
    return [_unpickled(part) for part in allgather(data, _part(name, "data")).split(lengths)]


def _part(name: str | None, what: str) -> str | None:
    """Return the name of one of several operations, or None if they are numbered."""
    return f"{name}.{what}" if name else None


def _zero_gradients(optimizer: torch.optim.Optimizer, model: nn.Module | None) -> None:
    sparse = sparse_weights(model) if model is not None else set()
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        if p.requires_grad and p.grad is None:
            zeros = torch.zeros_like(p)
            p.grad = zeros.to_sparse(1) if isinstance(optimizer, torch.optim.SparseAdam) or p in sparse else zeros


def _broadcast_(pairs: Iterable[tuple[str | None, Tensor]], root_rank: int) -> None:
    """Broadcast all tensors concurrently.

    A tensor that is not contiguous is copied. An unsupported dtype is sent as bytes.
    """
    pending = []
    for name, tensor in pairs:
        whole = tensor.detach().contiguous()
        sent = whole if whole.dtype in DTYPE_NAMES else whole.reshape(-1).view(torch.uint8)
        pending.append((tensor, whole, broadcast_async_(sent, root_rank, name=name)))
    with torch.no_grad():
        for tensor, whole, handle in pending:
            synchronize(handle)
            if whole.data_ptr() != tensor.data_ptr():
                tensor.copy_(whole)


def _map(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Return `tree`, nested dicts and lists, with `function` applied to every tensor."""
    if isinstance(tree, dict):
        return {key: _map(function, value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_map(function, value) for value in tree]
    return function(tree) if isinstance(tree, Tensor) else tree


def _pickled(obj: Any) -> Tensor:
    return torch.frombuffer(bytearray(cloudpickle.dumps(obj)), dtype=torch.uint8)


def _unpickled(data: Tensor) -> Any:
    return pickle.loads(data.numpy().tobytes())  # data from a rank of this job

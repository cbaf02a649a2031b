"""The one way to walk what a model holds: parameters, buffers of any dtype and layout, extra state.

Code that broadcasts, saves, restores or averages a model uses these functions. State is *plain* if
it is a strided tensor of torch itself, which is sent and written in place. All other state, such as
sparse buffers and what `get_extra_state` returns, is packed as values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.comm.ops import REDUCIBLE
from hvd_train.errors import UserError
from hvd_train.state import packing

EXTRA = "_extra_state"
"""Suffix of the names of extra states in torch's `state_dict`."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def is_plain(value: Any) -> bool:
    """Return True if `value` is a strided tensor of torch itself, no subclass, with values."""
    return (
        isinstance(value, Tensor)
        and type(value.detach()) is Tensor
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_nested or value.is_meta)
    )


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer once, under its first name.

    Buffers that are not saved are included.
    """
    yield from model.named_parameters()
    yield from model.named_buffers()


def others(model: nn.Module) -> dict[str, Any]:
    """Return what `state_dict` has beside plain parameters and buffers, by name."""
    return {name: v for name, v in model.state_dict().items() if name.endswith(EXTRA) or not is_plain(v)}


def load_others(model: nn.Module, values: dict[str, Any]) -> None:
    """Load what `others` returned."""
    if values:
        model.load_state_dict(values, strict=False)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers whose mean over ranks is meaningful, such as running means, by name."""
    plain = {name: b for name, b in model.named_buffers() if is_plain(b)}
    return {n: b for n, b in plain.items() if (b.is_floating_point() or b.is_complex()) and b.dtype in REDUCIBLE}


def common_statistics(model: nn.Module, comm: Communicator) -> list[Tensor]:
    """Return the `statistics` whose shape is equal on all ranks.

    Training may resize those of one rank. The call is collective.
    """
    own = statistics(model)
    shapes = gather_json(comm, {name: list(b.shape) for name, b in own.items()})
    return [b for name, b in own.items() if all(theirs.get(name) == list(b.shape) for theirs in shapes)]


def load_(model: nn.Module, state: Mapping[str, Any], problem: str) -> None:
    """Load a whole state; UserError, which begins with `problem`, if it is of another model."""
    fit_buffers(model, state)
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        text = "; ".join(line.strip() for line in str(error).split("\n")[1:3])
        raise UserError(f"{problem}: {text}") from None


def fit_buffers(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give buffers that training creates or resizes the shapes that they have in `state`."""
    device = next((p.device for p in model.parameters()), None)
    for path, module in model.named_modules():
        for word, buffer in module._buffers.items():
            saved = state.get(f"{path}.{word}" if path else word)
            if isinstance(saved, Tensor) and is_plain(saved) and (buffer is None or buffer.shape != saved.shape):
                like = saved.to(device) if buffer is None else buffer
                module._buffers[word] = torch.empty(saved.shape, dtype=like.dtype, device=like.device)


def sparse_weights(model: nn.Module) -> set[Tensor]:
    """Return the weights of embeddings whose gradients are sparse."""
    return {m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse}


def as_real(x: Tensor) -> Tensor:
    """Return `x`, or the real and imaginary parts (..., 2) of a complex `x`, in the same memory."""
    return torch.view_as_real(x) if x.is_complex() else x


@torch.no_grad()
def broadcast_(model: nn.Module, comm: Communicator) -> None:
    """Overwrite the state of the model with that of rank 0's model; collective."""
    for _, tensor in tensors(model):
        if is_plain(tensor):
            comm.broadcast_(tensor.data)
    rest = others(model)
    if rest:
        load_others(model, packing.broadcast(comm, rest))


def convert_(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move the model to `device`, with floats in `dtype` and complex numbers in its complex dtype.

    Integers, bools and 8-bit floats keep their dtype. Tensors that share memory still do: tied
    buffers stay tied.
    """
    kinds = {**dict.fromkeys(FLOATS, dtype), **dict.fromkeys(COMPLEX.values(), COMPLEX[dtype])}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    users = Counter(_memory(tensor) for _, tensor in named if is_plain(tensor))
    moved: dict[tuple[int, torch.dtype], Tensor] = {}

    def convert(tensor: Tensor) -> Tensor:
        kind = kinds.get(tensor.dtype, tensor.dtype)
        if is_lazy(tensor) or not is_plain(tensor) or users[_memory(tensor)] < 2:
            tensor = tensor.to(device, kind)
            return tensor.contiguous() if is_plain(tensor) and overlaps_itself(tensor) else tensor
        if tensor.dtype == kind and tensor.device == device:
            return tensor
        key = _memory(tensor), tensor.dtype
        if key not in moved:
            everything = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
            moved[key] = everything.to(device, kind)
        return moved[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    model._apply(convert)


@torch.no_grad()
def materialise(model: nn.Module, run: Callable[[], object]) -> None:
    """Call `run`, a forward pass of the model, if it has lazy modules, to set their shapes.

    Raise UserError if a lazy module is not reached.
    """
    if not any(is_lazy(t) for _, t in tensors(model)):
        return
    model.eval()
    run()
    name = next((name for name, t in tensors(model) if is_lazy(t)), None)
    if name is not None:
        raise UserError(
            f"model: '{name}' has no shape yet, since no sample reaches its lazy module; give it its sizes, or leave it out"
        )


def check(model: nn.Module) -> None:
    """Raise UserError for state that cannot be trained, sent or saved."""
    for name, p in model.named_parameters():
        if p.is_meta:
            raise UserError(
                f"model: parameter '{name}' has no values (it is on torch's meta device); build it on the CPU"
            )
        if not is_plain(p):
            raise UserError(
                f"model: parameter '{name}' is a {_described(p)}, expected a dense tensor of torch itself; keep its values "
                "in an ordinary Parameter and convert them in forward()"
            )
        if overlaps_itself(p):
            raise UserError(
                f"model: elements of parameter '{name}' share memory (it was expanded); make it of its own memory with "
                ".clone(), or expand it in forward()"
            )
    _check_sharing(model)
    for name, value in others(model).items():
        try:
            packing.to_tensors(value, name)
        except TypeError as error:
            what = "what its get_extra_state() returns" if name.endswith(EXTRA) else "the buffer"
            raise UserError(
                f"model: '{name}' cannot be saved: {what} holds {error}; expected tensors, arrays, numbers, text, bytes, lists, "
                "tuples and dicts of them"
            ) from None


def check_alone(model: nn.Module) -> None:
    """Raise UserError for modules that communicate through libraries that ddl does not start."""
    for name, module in model.named_modules():
        if isinstance(module, nn.SyncBatchNorm):
            raise UserError(
                f"model: '{name}' is torch's SyncBatchNorm, which only torch.distributed synchronises; take an ordinary "
                "nn.BatchNorm, of whose running statistics evaluations and checkpoints see the mean of all ranks, or nn.GroupNorm"
            )


def check_forward(model: nn.Module) -> None:
    """Raise UserError if a forward pass changes parameters, which must be equal on all ranks."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise UserError(
                f"model: '{name}' has max_norm, so that each rank's forward pass changes the rows it uses and ranks drift apart; "
                "leave max_norm out, or take sync.strategy: local_sgd"
            )


def overlaps_itself(x: Tensor) -> bool:
    """Return True if elements of a strided tensor may share memory, as in an expanded tensor."""
    reach = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def _check_sharing(model: nn.Module) -> None:
    """Raise UserError if a trained parameter, which training moves, shares memory with a tensor."""
    found = [(t.data_ptr(), _end(t), name, t) for name, t in tensors(model) if is_plain(t) and t.numel()]
    found.sort(key=lambda item: item[:2])
    for i, (_, end, name, one) in enumerate(found):
        for start, _, other, two in found[i + 1 :]:
            if start >= end:
                break
            trained = any(isinstance(t, nn.Parameter) and t.requires_grad for t in (one, two))
            if trained and not _positions(one).isdisjoint(_positions(two)):
                raise UserError(
                    f"model: '{name}' and '{other}' lie in the same memory, and training would part them; make them one "
                    "Parameter (b.weight = a.weight), or take the view in forward()"
                )


def _positions(x: Tensor) -> set[int]:
    """Return the addresses of all elements."""
    at = torch.tensor(x.data_ptr())
    for stride, size in zip(x.stride(), x.shape, strict=True):
        at = at[..., None] + torch.arange(size) * stride * x.element_size()
    return set(at.flatten().tolist())


def _end(x: Tensor) -> int:
    last = sum(stride * (size - 1) for stride, size in zip(x.stride(), x.shape, strict=True))
    return x.data_ptr() + (last + 1) * x.element_size()


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _described(x: Tensor) -> str:
    if type(x.detach()) is not Tensor:
        return type(x.detach()).__name__
    return f"tensor of layout {str(x.layout).removeprefix('torch.')}" if not x.is_quantized else "quantized tensor"

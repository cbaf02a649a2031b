"""Packs tensors, arrays, numbers, text and containers as tensors and JSON, and as bytes.

Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import broadcast_bytes
from hvd_train.text.strict_json import dumps_exact, loads_exact

_VALUE = "value"
_STORED: dict[torch.dtype, torch.dtype] = {
    torch.complex128: torch.float64,
    torch.complex32: torch.float16,
    **{getattr(torch, name): torch.uint8 for name in ("float8_e8m0fnu", "float4_e2m1fn_x2") if hasattr(torch, name)},
}
"""Maps each dtype that safetensors lacks to the dtype that its bytes are stored as."""


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON, with {"tensor": key} for each tensor, and add these to `tensors`.

    TypeError, with the name of the type, if a value is not a tensor, array, number, text, bytes,
    list, tuple or dict.
    """
    if isinstance(value, Tensor):
        return _pack_tensor(value.detach(), name, tensors)
    if isinstance(value, dict):
        return {"dict": [[pack(k, name, tensors), pack(v, f"{name}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        items = [pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
        return {"tuple": items} if type(value) is tuple else items
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {"array": pack(torch.from_numpy(value.astype(value.dtype.newbyteorder("="))), name, tensors)}
    if isinstance(value, np.generic):
        return pack(value.item(), name, tensors)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a {type(value).__name__}")


def _pack_tensor(value: Tensor, name: str, tensors: dict[str, Tensor]) -> Any:
    if type(value) is not Tensor or value.is_quantized or value.is_nested or value.is_meta:
        kind = (
            "quantized tensor"
            if value.is_quantized
            else "tensor without values"
            if value.is_meta
            else type(value).__name__
        )
        raise TypeError(f"a {kind}")
    if value.layout == torch.strided:
        tensors[name] = value.contiguous()
        return {"tensor": name}
    if value.layout == torch.sparse_coo:
        value = value.coalesce()
        parts = {"indices": value.indices(), "values": value.values()}
    elif value.layout == torch.sparse_csr:
        parts = {"crow": value.crow_indices(), "columns": value.col_indices(), "values": value.values()}
    else:
        raise TypeError(f"a tensor of layout {str(value.layout).removeprefix('torch.')}")
    packed = {key: pack(part, f"{name}.{key}", tensors) for key, part in parts.items()}
    return {"sparse": {"size": list(value.shape), **packed}}


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the value that `pack` turned into `value` and `tensors`."""
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {unpack(k, tensors): unpack(v, tensors) for k, v in content}
    if kind == "tuple":
        return tuple(unpack(v, tensors) for v in content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "array":
        return unpack(content, tensors).numpy()
    parts = {key: unpack(part, tensors) for key, part in content.items()}
    if "crow" in parts:
        return torch.sparse_csr_tensor(
            parts["crow"], parts["columns"], parts["values"], parts["size"], check_invariants=True
        )
    return torch.sparse_coo_tensor(
        parts["indices"], parts["values"], parts["size"], is_coalesced=True, check_invariants=True
    )


def to_tensors(value: Any, name: str) -> dict[str, Tensor]:
    """Return `value` as tensors only: its own, and one called `name` with the rest as JSON."""
    tensors: dict[str, Tensor] = {}
    structure = dumps_exact(pack(value, name, tensors)).encode()
    return {**tensors, name: torch.frombuffer(bytearray(structure), dtype=torch.uint8)}


def from_tensors(tensors: dict[str, Tensor], name: str) -> Any:
    """Return the value that `to_tensors` turned into `tensors`; other tensors are ignored."""
    return unpack(loads_exact(tensors[name].numpy().tobytes()), tensors)


def to_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Return `tensors`, of any dtype and memory layout, in the format of safetensors.

    Complex numbers of a dtype that it lacks are stored as pairs, other such dtypes as bytes. The
    header lists these dtypes.
    """
    return safetensors.torch.save(*_storable(tensors))


def to_file(tensors: dict[str, Tensor], path: Path) -> None:
    """Write what `to_bytes` returns to `path`, from the memory of the tensors."""
    stored, metadata = _storable(tensors)
    safetensors.torch.save_file(stored, path, metadata)


def _storable(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Return tensors as the format takes them, and the metadata of their header."""
    stored, memory = {}, set()
    for name, tensor in tensors.items():
        one = _stored(tensor.detach().cpu()).contiguous()
        at = one.untyped_storage().data_ptr()
        stored[name] = one.clone() if at in memory else one  # the format has no tensors that share memory
        memory.add(at)
    kinds = {name: _name(t.dtype) for name, t in tensors.items() if t.dtype in _STORED}
    return stored, {"dtypes": dumps_exact(kinds)} if kinds else None


def from_bytes(content: bytes) -> dict[str, Tensor]:
    """Return the tensors that `to_bytes` stored; ValueError if `content` is damaged."""
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from None
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    kinds = json.loads(header.get("__metadata__", {}).get("dtypes", "{}"))
    return {**tensors, **{name: _restored(tensors[name], getattr(torch, kind)) for name, kind in kinds.items()}}


def broadcast(comm: Communicator, value: Any) -> Any:
    """Return rank 0's `value`, which `pack` must accept, on every rank; collective."""
    sent = to_bytes(to_tensors(value if comm.rank == 0 else None, _VALUE))
    received = broadcast_bytes(comm, torch.frombuffer(bytearray(sent), dtype=torch.uint8))
    return from_tensors(from_bytes(received.numpy().tobytes()), _VALUE)


def _stored(x: Tensor) -> Tensor:
    if x.dtype not in _STORED:
        return x
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x.contiguous().view(_STORED[x.dtype])


def _restored(x: Tensor, kind: torch.dtype) -> Tensor:
    return torch.view_as_complex(x) if kind.is_complex else x.view(kind)


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")

"""Collectives of values that JSON can represent, and of bytes whose length only one rank knows."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator


def gather_json(comm: Communicator, value: Any) -> list[Any]:
    """Return the `value` of every rank, in rank order, on every rank."""
    return [_decode(text) for text in comm.all_gather(_encode(value))]


def broadcast_json(comm: Communicator, value: Any, root: int = 0) -> Any:
    """Return the `value` of rank `root`. Values of other ranks are ignored."""
    return _decode(broadcast_bytes(comm, _encode(value if comm.rank == root else None), root))


def broadcast_bytes(comm: Communicator, content: Tensor, root: int = 0) -> Tensor:
    """Return the `content` of rank `root`, a flat tensor of uint8.

    Other ranks may pass a tensor of any length.
    """
    length = torch.tensor(content.numel())
    comm.broadcast_(length, root)
    content = content if comm.rank == root else torch.empty(int(length), dtype=torch.uint8)
    comm.broadcast_(content, root)
    return content


def _encode(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decode(text: Tensor) -> Any:
    return json.loads(text.numpy().tobytes())

"""What becomes of a request of this rank."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from hvd_train.torch._negotiation import Key


class Entry:
    """A request of this rank: its tensors, and what became of it."""

    __slots__ = ("done", "error", "inputs", "key", "outputs", "ready", "result", "splits", "start")

    key: Key

    def __init__(self, inputs: list[Tensor], outputs: list[Tensor], splits: list[int] | None = None) -> None:
        self.inputs, self.outputs, self.splits = inputs, outputs, splits
        self.done = False
        self.error: str | None = None
        self.result: Any = None
        self.ready = _event(inputs)
        self.start = time.perf_counter()


def _event(tensors: list[Tensor]) -> Any:
    """What the work of the current CUDA stream on `tensors` ends with."""
    if tensors and tensors[0].is_cuda:
        return torch.cuda.current_stream().record_event()
    return None

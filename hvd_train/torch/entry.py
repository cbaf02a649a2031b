"""The state of a request of this rank."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from hvd_train.torch.requests import Key, Request


class Entry:
    """A request of this rank with its tensors and its result, which is `outputs` by default."""

    __slots__ = ("done", "error", "inputs", "outputs", "ready", "request", "result", "splits", "start")

    request: Request

    def __init__(self, inputs: list[Tensor], outputs: list[Tensor], splits: list[int] | None = None) -> None:
        self.inputs, self.outputs, self.splits = inputs, outputs, splits
        self.done = False
        self.error: str | None = None
        self.result: Any = outputs
        self.ready = _event() if inputs and inputs[0].is_cuda else None
        self.start = time.perf_counter()

    @property
    def key(self) -> Key:
        return self.request.key


def _event() -> Any:
    """Record an event at the end of the work on the current CUDA stream."""
    return torch.cuda.current_stream().record_event()

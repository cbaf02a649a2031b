"""The ranges of layers' inputs in quantisation-aware training, equal on all ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.slim.quantization import InputRange

DECAY = 0.95
"""The weight of earlier batches in a range."""


class Ranges:
    """Moves the ranges of `model` when the ranks of `comm` have synchronised.

    A range is a moving average of the extremes of the inputs, over all micro-batches of all ranks
    since the last move. So N ranks have the ranges of one process with the same batches. A range
    contains zero. The first extremes are the range.
    """

    def __init__(self, model: nn.Module, comm: Communicator, synchronises_at: Callable[[int], bool]) -> None:
        self._layers = [m for m in model.modules() if isinstance(m, InputRange)]
        self._comm, self._synchronises_at = comm, synchronises_at

    def after_step(self, step: int) -> None:
        """Move the ranges, if ranks have synchronised in step number `step`, from 1; collective then."""
        if self._synchronises_at(step - 1):
            self._move()

    def seen(self) -> Tensor:
        """Return the extremes (layers, 2) that this rank has noted, in float64 on the CPU."""
        return torch.stack([layer.seen.cpu().double() for layer in self._layers])

    def load_seen(self, seen: Tensor) -> None:
        """Restore `seen`."""
        for layer, extremes in zip(self._layers, seen, strict=True):
            layer.seen = extremes.to(layer.low.device)

    @torch.no_grad()
    def _move(self) -> None:
        extremes = self.seen()
        self._comm.all_reduce_(extremes, "max")
        for layer, (least, most) in zip(self._layers, extremes.tolist(), strict=True):
            layer.forget()
            if least + most > float("-inf"):
                _move_(layer, min(-least, 0.0), max(most, 0.0))


def _move_(layer: InputRange, low: float, high: float) -> None:
    is_first = not bool(layer.high > layer.low)
    for buffer, value in ((layer.low, low), (layer.high, high)):
        buffer.copy_(torch.tensor(value) if is_first else DECAY * buffer + (1 - DECAY) * value)

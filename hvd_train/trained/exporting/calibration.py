"""Samples that a quantizer observes the model with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Array = Any
"""A numpy array."""


@dataclass(frozen=True)
class Calibration:
    """Batches of training samples; none of them is held out."""

    names: Sequence[str]
    """The name of each input of the exported program."""
    batches: Sequence[tuple[Tensor, ...]]
    """For each batch the value of each input, on the CPU, floats in float32."""
    call: Callable[[nn.Module, tuple[Tensor, ...]], Any]
    """Calls a model, which need not be exported, with the inputs of a batch."""

    def run(self, model: nn.Module) -> None:
        """Call `model` with every batch."""
        for batch in self.batches:
            self.call(model, batch)

    def feeds(self) -> list[dict[str, Array]]:
        """Return the batches as onnxruntime takes them: arrays by the name of the input."""
        return [{name: x.numpy() for name, x in zip(self.names, batch, strict=True)} for batch in self.batches]

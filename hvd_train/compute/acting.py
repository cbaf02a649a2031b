"""The model as an agent asks it: outputs for observations, without gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hvd_train.compute.calling import arguments, caller
from hvd_train.compute.precision import Precision
from hvd_train.data.nesting import map_tensors


class Acting:
    """Calls `model` in eval mode, in the precision of the run."""

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        self.model, self._precision = model, precision
        self._call, self._divide = caller(model), arguments(model)

    def begin(self) -> None:
        """Set the model to eval mode, for all calls of `outputs` until it trains again."""
        self.model.eval()

    @torch.no_grad()
    def outputs(self, observations: Any, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the outputs on the CPU, in float32 at least; with other `parameters` if given."""
        inputs = map_tensors(self._precision.inputs, observations)
        with self._precision.forward():
            found: Tensor
            if parameters is None:
                found = self._call(inputs)
            else:
                placed = {name: self._precision.place(value) for name, value in parameters.items()}
                found = functional_call(self.model, placed, *self._divide(inputs))
        found = found if found.dtype == torch.float64 else found.float()
        return found.cpu()

    def parameters(self) -> dict[str, Tensor]:
        """Return copies of the parameters and buffers by name."""
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        return {name: value.detach().clone() for name, value in named}

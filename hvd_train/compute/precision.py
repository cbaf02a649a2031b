"""Number formats of training: full precision, or half under autocast with loss scaling."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hvd_train.gradients.optimizer import ModelOptimizer

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Scaler(torch.amp.GradScaler):
    """Scales losses such that all ranks that must skip a step for an overflow skip it together."""

    def unscale_gradients(self, optimizer: ModelOptimizer) -> None:
        """Divide the gradients by the loss scale, and agree among ranks whether one overflowed.

        Call it once a step, before clipping and before `step`. The call is collective.
        """
        if not self.is_enabled():
            return
        self.unscale_(optimizer.torch)
        state = self._per_optimizer_states[id(optimizer.torch)]
        for flag in state["found_inf_per_device"].values():
            optimizer.agree_(flag)

    def _unscale_grads_(self, *arguments: Any) -> dict[torch.device, Tensor]:
        # A rank without a parameter in use has no gradient of its own to check.
        return super()._unscale_grads_(*arguments) or {torch.device("cpu"): torch.zeros(1)}


class Precision:
    """Casts, autocast and loss scaling for one of fp32, fp64, bf16 and fp16."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = torch.float64 if name == "fp64" else torch.float32
        """The dtype of floating-point parameters."""
        self.device = device
        self._name, self._half = name, HALF.get(name)
        self.scaler = Scaler(device.type, enabled=name == "fp16")

    @property
    def warnings(self) -> list[str]:
        """What the user should know of this number format on this processor."""
        if self._half is None or self.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return []
        if getattr(torch.ops.mkldnn, f"_is_mkldnn_{self._name}_supported")():
            return []
        return [
            f"train.precision: this processor has no instructions for {self._name}, and emulates them; fp32 is faster here"
        ]

    def place(self, x: Tensor) -> Tensor:
        """Return `x` on the device, copied beside computation if its memory is pinned."""
        return x.to(self.device, non_blocking=True)

    def inputs(self, x: Tensor) -> Tensor:
        """Return `x` on the device; floating-point inputs in the dtype of the parameters."""
        return x.to(self.device, self.dtype) if x.is_floating_point() else x.to(self.device)

    def begin(self) -> None:
        """Initialise the loss scale before the gradients of a step.

        torch initialises it with the first loss, and a rank that computes no loss needs it too.
        """
        if self.scaler.is_enabled():
            self.scaler.scale(torch.zeros((), device=self.device))

    def forward(self) -> AbstractContextManager[object]:
        """Return the context of the forward pass."""
        return torch.autocast(self.device.type, self._half) if self._half else nullcontext()

"""Number formats of training: full precision, or half precision under autocast with loss scaling."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Scaler(torch.amp.GradScaler):
    """Loss scaling of which `agree_` is told whether this rank's gradients overflowed."""

    def __init__(self, device: str, *, enabled: bool) -> None:
        super().__init__(device, enabled=enabled)
        self.agree_: Callable[[Tensor], None] = lambda found_inf: None

    def _unscale_grads_(self, *arguments: Any) -> dict[torch.device, Tensor]:
        # A rank that owns nothing in use has no gradient to look at, and must hear of the others' all the same.
        found = super()._unscale_grads_(*arguments) or {torch.device("cpu"): torch.zeros(1)}
        for flag in found.values():
            self.agree_(flag)
        return found


class Precision:
    """Casts, autocast and loss scaling for one of fp32, fp64, bf16 and fp16."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = torch.float64 if name == "fp64" else torch.float32
        self.device = device
        self._half = HALF.get(name)
        self.scaler = Scaler(device.type, enabled=name == "fp16")

    def inputs(self, x: Tensor) -> Tensor:
        """`x` on the device; floating point inputs in the dtype of the parameters."""
        return x.to(self.device, self.dtype) if x.is_floating_point() else x.to(self.device)

    def begin(self) -> None:
        """Before the gradients of a step: a rank that sees no loss needs the scale of all too, which the first loss makes."""
        if self.scaler.is_enabled():
            self.scaler.scale(torch.zeros((), device=self.device))

    def forward(self) -> AbstractContextManager[object]:
        """What the forward pass runs under."""
        return torch.autocast(self.device.type, self._half) if self._half else nullcontext()

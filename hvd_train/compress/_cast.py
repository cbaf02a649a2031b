"""What the compressors that only change the dtype have in common."""

from __future__ import annotations

import torch
from torch import Tensor


class Cast:
    """Transmit floating point tensors in a narrower dtype; others, and narrower ones, as they are."""

    reducible = True

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def compress(self, x: Tensor) -> tuple[Tensor, torch.dtype]:
        narrower = x.is_floating_point() and x.element_size() > self.dtype.itemsize
        return x.to(self.dtype) if narrower else x, x.dtype

    def decompress(self, payload: Tensor, context: torch.dtype) -> Tensor:
        return payload.to(context)

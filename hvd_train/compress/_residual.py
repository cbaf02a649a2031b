"""Error feedback: what one step did not send is added to what a later one sends."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.compress.base import Layout


class Residual:
    """What this rank has not sent yet, of each element of a bucket, in float32 (Karimireddy et al., arXiv 1901.09847).

    A parameter without a gradient keeps its residual and sends none of it: if no rank has a gradient, nobody uses the sum.
    """

    def __init__(self, layout: Layout) -> None:
        self._sizes = layout.sizes
        self.kept = torch.zeros(sum(layout.sizes), device=layout.device)

    def added_to(self, gradients: Tensor, flags: Tensor) -> Tensor:
        """What to send, in float32."""
        x = gradients.to(torch.float32, copy=True)
        for piece, kept, used in zip(x.split(self._sizes), self.kept.split(self._sizes), flags.tolist(), strict=True):
            if used:
                piece += kept
        return x

    def keep(self, gradients: Tensor, sent: Tensor) -> None:
        """Remember what `sent` lacks."""
        self.kept += gradients - sent

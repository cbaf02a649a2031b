"""Error feedback: what compression drops in one step is added to the gradient of a later step."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.gradients.compression.base import BucketLayout


class Residual:
    """What this rank has not sent of a bucket, in float32 (Karimireddy et al., arXiv 1901.09847).

    A parameter without a gradient keeps its residual and sends none of it: if no rank has a
    gradient, the sum is not used.
    """

    def __init__(self, layout: BucketLayout) -> None:
        self._sizes = layout.sizes
        self.kept = torch.zeros(sum(layout.sizes), device=layout.device)

    def added_to(self, gradients: Tensor, flags: Tensor) -> Tensor:
        """Return `gradients` plus the residuals of parameters that have a flag, in float32."""
        x = gradients.to(torch.float32, copy=True)
        for gradient, kept, used in zip(
            x.split(self._sizes), self.kept.split(self._sizes), flags.tolist(), strict=True
        ):
            if used:
                gradient += kept
        return x

    def keep(self, gradients: Tensor, sent: Tensor) -> None:
        """Add to the residual what `sent` lacks of `gradients`."""
        self.kept += gradients - sent

"""bfloat16: half the bytes, 8 bits of mantissa, the range of float32."""

from __future__ import annotations

import torch

from hvd_train.gradients.compression.cast import Cast


def create() -> Cast:
    return Cast(torch.bfloat16)

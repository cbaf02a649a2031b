"""IEEE half precision: half the bytes, 11 bits of mantissa, largest value 65504."""

from __future__ import annotations

import torch

from hvd_train.gradients.compression.cast import Cast


def create() -> Cast:
    return Cast(torch.float16)

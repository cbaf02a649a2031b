"""Digests of tensors, by which ranks and checkpoints compare data."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def digest(x: Tensor) -> str:
    """Return the SHA-256 of the elements of `x`, as hexadecimal digits."""
    content = x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.sha256(content.tobytes()).hexdigest()

"""The rows of a batch that fit into bounded memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.data.nesting import tensors
from hvd_train.trained.explaining.method import Features

BUDGET = 256 * 2**20
"""Bytes of the activations and gradients of one batch."""
MOST = 1024


def rows(bytes_of_one: int) -> int:
    """Return how many rows of `bytes_of_one` stay in the budget, at least 1."""
    return max(1, min(MOST, BUDGET // max(1, bytes_of_one)))


def bytes_of_one(model: nn.Module, score: Any, features: Features) -> int:
    """Return the bytes of one row: what all layers of `model` give, and as much for gradients."""
    counted = 0

    def count(module: nn.Module, inputs: Any, outputs: Any) -> None:
        nonlocal counted
        counted += sum(_size(x) for x in tensors(outputs))

    leaves = [module for module in model.modules() if not any(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    try:
        with torch.no_grad():
            score(*features)
    finally:
        for hook in hooks:
            hook.remove()
    return 2 * (counted + sum(map(_size, features)))


def _size(x: Tensor) -> int:
    return x.numel() * x.element_size()

"""Refuse batches of one sample, which have no variance for batch normalisation."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hvd_train.errors import UserError


def leaves_one(samples: int, batch_size: int) -> bool:
    """Return True if the last batch of `samples` in batches of `batch_size` has one sample."""
    return samples > 0 and (samples % batch_size == 1 or batch_size == 1)


@torch.no_grad()
def check(model: nn.Module, run: Callable[[nn.Module], object], samples: int, batch_size: int) -> None:
    """Raise UserError if the smallest batch has one sample, and `model` needs more in training.

    `run` calls a model with a batch of one. A copy of the model runs on it once in evaluation mode, to find the
    inputs of its layers.
    """
    if not leaves_one(samples, batch_size):
        return
    if not any(isinstance(m, _BatchNorm) for m in model.modules()):
        return
    model = copy.deepcopy(model).train()
    layers = {m: name for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training}
    layers = {m: name for m, name in layers.items() if type(m).__name__ != "SyncBatchNorm"}
    if not layers:
        return
    starved: list[_BatchNorm] = []

    def record(layer: Any, inputs: tuple[Any, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            starved.append(layer)

    for layer in layers:
        layer.register_forward_pre_hook(record)
    model.eval()
    with contextlib.suppress(ValueError):  # a layer without running statistics raises it after the hook
        run(model)
    if starved:
        raise UserError(
            f"data.batch_size: with {batch_size} of {samples} samples a rank's last batch has one sample, and "
            f"'{layers[starved[0]]}' ({type(starved[0]).__name__}) needs at least two in training; "
            f"take {_better(samples, batch_size)}, or group or layer normalisation"
        )


def _better(samples: int, batch_size: int) -> str:
    """Return the nearest batch size without a batch of one sample, as advice."""
    by_distance = sorted(range(2, 2 * batch_size + 3), key=lambda size: abs(size - batch_size))
    better = next((size for size in by_distance if samples % size != 1), None)
    return f"data.batch_size: {better}" if better else "other data"

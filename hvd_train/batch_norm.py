"""Batches of one sample, of which batch normalisation cannot take a variance."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hvd_train.errors import UserError


def leaves_one(samples: int, batch_size: int) -> bool:
    """Return whether batches of `batch_size` leave one of `samples` alone."""
    return samples > 0 and (samples % batch_size == 1 or batch_size == 1)


@torch.no_grad()
def check(model: nn.Module, sample: Tensor, samples: int, batch_size: int) -> None:
    """Raise UserError if the smallest batch of `samples` has one sample and `model` needs more in training.

    `sample` is a batch of one. A copy of the model runs on it once, in evaluation mode, to see what reaches its layers.
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
    lone: list[_BatchNorm] = []

    def look(layer: Any, inputs: tuple[Any, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            lone.append(layer)

    for layer in layers:
        layer.register_forward_pre_hook(look)
    model.eval()
    with contextlib.suppress(ValueError):  # of a layer without running statistics, after it has been seen
        model(sample)
    if lone:
        raise UserError(
            f"data.batch_size: with {batch_size} of {samples} samples a rank's last batch has one sample, and "
            f"'{layers[lone[0]]}' ({type(lone[0]).__name__}) needs at least two in training; "
            f"take {_better(samples, batch_size)}, or group or layer normalisation"
        )


def _better(samples: int, batch_size: int) -> str:
    """Return advice: the nearest batch size that leaves no sample alone."""
    by_distance = sorted(range(2, 2 * batch_size + 3), key=lambda size: abs(size - batch_size))
    found = next((size for size in by_distance if samples % size != 1), None)
    return f"data.batch_size: {found}" if found else "other data"

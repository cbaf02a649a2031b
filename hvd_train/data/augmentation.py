"""The parts of a sample or a batch that a transform changes: images, inputs or targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree

from hvd_train.data.batch import divide, label_key
from hvd_train.data.nesting import like, map_tensors, shown, tensors
from hvd_train.data.transform import Transform
from hvd_train.errors import UserError

Function = Callable[[Tensor], Tensor]
Draw = Callable[[int, int, torch.Generator], Function]
"""Returns a random function of tensors (..., height, width). It is picklable."""


def map_inputs(function: Function, whole: Any, label: str | None) -> Any:
    """Return a sample or a batch with `function` applied to the floats among its inputs."""

    def applied(value: Any) -> Any:
        return map_tensors(lambda x: function(x) if x.is_floating_point() else x, value)

    whole = _as_tensors(whole)
    if isinstance(whole, dict):
        key = label_key(whole, label)
        return {name: value if name == key else applied(value) for name, value in whole.items()}
    if isinstance(whole, tuple | list) and len(whole) > 1:
        return like(whole, [*map(applied, whole[:-1]), whole[-1]])
    return applied(whole)


def map_targets(function: Function, whole: Any, label: str | None) -> Any:
    """Return a batch with `function` applied to its targets; UserError without targets."""
    if not isinstance(divide(whole, label).targets, Tensor):
        raise UserError(f"data.transforms: a batch is {shown(whole)}, expected inputs with a tensor of targets")
    if isinstance(whole, dict):
        key = label_key(whole, label)
        return {name: function(value) if name == key else value for name, value in whole.items()}
    return like(whole, [*whole[:-1], function(whole[-1])])


@dataclass(frozen=True)
class ImageTransform(Transform):
    """Applies one random function to the image of a sample and to all that has its size.

    So masks, also as targets, move with the image, which is the first input of three dimensions.
    UserError if there is none.
    """

    draw: Draw
    label: str | None

    def sample(self, sample: Any, generator: torch.Generator) -> Any:
        sample = _as_tensors(sample)
        size = _size(divide(sample, self.label).inputs, 3)
        if size is None:
            raise UserError(
                f"data.transforms: a sample is {shown(sample)}, expected an image (channels, height, width)"
            )
        function = self.draw(size[0], size[1], generator)
        return map_tensors(lambda x: function(x) if x.dim() > 1 and x.shape[-2:] == size else x, sample)

    def rows(self, batch: Any, generators: Sequence[torch.Generator]) -> Any:
        size = _size(divide(batch, self.label).inputs, 4)
        if size is None:
            whole = shown(batch)
            raise UserError(f"data.transforms: a batch is {whole}, expected images (samples, channels, height, width)")
        functions = [self.draw(size[0], size[1], generator) for generator in generators]

        def changed(x: Tensor) -> Tensor:
            if x.dim() < 3 or x.shape[-2:] != size:
                return x
            return torch.stack([function(one) for function, one in zip(functions, x.unbind(), strict=True)])

        return map_tensors(changed, batch)


def _size(inputs: Any, dimensions: int) -> torch.Size | None:
    """Return the height and the width of the first tensor with so many dimensions."""
    return next((x.shape[-2:] for x in tensors(inputs) if x.dim() == dimensions), None)


def soft(targets: Tensor, outputs: int) -> Tensor:
    """Return targets that can be averaged: classes `(n,)` as rows of `outputs` probabilities.

    Raise UserError for integers that are no classes.
    """
    if targets.is_floating_point():
        return targets
    if targets.dim() != 1 or not outputs:
        raise UserError(
            f"data.transforms: the targets are {shown(targets)}, expected classes or floating-point numbers"
        )
    return F.one_hot(targets, outputs).float()


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Return a random number from `low` to `high`."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def beta(alpha: float, generator: torch.Generator) -> float:
    """Return a random number of the distribution Beta(alpha, alpha)."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def _as_tensors(value: Any) -> Any:
    return _pytree.tree_map(lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf, value)

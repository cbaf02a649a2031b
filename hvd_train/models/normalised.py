"""A model whose inputs are normalised by the statistics of all observations so far."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

LARGEST = 10.0
"""Normalised values are cut off here."""


class Normalised(nn.Module):
    """`model` of inputs with mean 0 and variance 1. The statistics are buffers: exports contain them."""

    mean: Tensor
    variance: Tensor
    count: Tensor
    seen: Tensor
    """Number, sum and sum of squares of what this rank observed since the last update."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(3, *shape), persistent=False)

    def forward(self, observation: Tensor, **others: Tensor) -> Tensor:
        """Return the outputs for observations; `others` are further arguments, which stay as they are."""
        scaled = (observation - self.mean) / (self.variance + 1e-8).sqrt()
        out: Tensor = self.model(scaled.clamp(-LARGEST, LARGEST), **others)
        return out

    def observe(self, observations: Tensor) -> None:
        """Count `observations` `(samples, *shape)`, for the next `update`."""
        values = observations.to(self.seen)
        self.seen += torch.stack([torch.ones_like(values).sum(0), values.sum(0), values.square().sum(0)])

    def update(self, add: Callable[[Tensor], Tensor]) -> None:
        """Merge what all ranks have observed since the last call; collective. `add` sums over the ranks."""
        number, total, squares = add(self.seen.double().cpu())
        self.seen.zero_()
        if not float(number.max()):
            return
        mean, variance = total / number, squares / number - (total / number).square()
        before, old_mean, old_variance = (
            self.count.double().cpu(),
            self.mean.double().cpu(),
            self.variance.double().cpu(),
        )
        count = before + number.max()
        apart = mean - old_mean
        within = old_variance * before + variance * number + apart.square() * before * number / count
        self.mean.copy_(old_mean + apart * number / count)
        self.variance.copy_(within / count)
        self.count.copy_(count)

"""Local steps, then a step of an outer optimizer along the mean change of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hvd_train.config.options import Annotated, Fraction, PositiveFloat, PositiveInt
from hvd_train.sync.base import Context
from hvd_train.sync.membership import every
from hvd_train.sync.replicas.flat import FlatParameters
from hvd_train.sync.strategies.local_sgd import LocalSGD
from hvd_train.sync.view import View


def outer_step(start: Tensor, mean: Tensor, velocity: Tensor, lr: float, momentum: float) -> Tensor:
    """Return w_0 - lr (d + momentum v) for d = w_0 - mean(w_i), after v <- momentum v + d in place.

    This is Nesterov's step as torch takes it. The result is bitwise the mean if lr is 1 and
    momentum 0.
    """
    delta = start - mean
    velocity.mul_(momentum).add_(delta)
    return mean + (1 - lr) * delta - lr * momentum * velocity


class Nesterov(View):
    """DiLoCo's outer optimizer: SGD with Nesterov momentum, one step a round.

    Douillard et al., arXiv 2311.08105. The gradient is the mean change of all ranks in the round.
    Inner optimizers keep their state from round to round.
    """

    def __init__(self, lr: float, momentum: float) -> None:
        super().__init__()
        self._lr, self._momentum = lr, momentum
        self._velocities: list[Tensor] = []

    def extend(self, flat: FlatParameters) -> None:
        self._flat = flat
        self._velocities += [torch.zeros_like(t) for t in flat.tensors[len(self._velocities) :]]

    @torch.no_grad()
    def step_(self, means: Sequence[Tensor], anchors: Sequence[Tensor]) -> None:
        for mean, start, velocity in zip(means, anchors, self._velocities, strict=True):
            mean.copy_(outer_step(start, mean, velocity, self._lr, self._momentum))

    def state_dict(self) -> dict[str, Any]:
        return {"velocities": self._flat.by_name(self._velocities)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._flat.restore_(self._velocities, state["velocities"])


def create(
    context: Context,
    *,
    period: Annotated[PositiveInt, "inner steps between two outer steps: the bytes fall by this factor"] = 50,
    outer_lr: Annotated[
        PositiveFloat, "learning rate of the outer optimizer; 1.0 moves to the mean of all ranks"
    ] = 0.7,
    outer_momentum: Annotated[Fraction, "Nesterov momentum of the outer optimizer; 0: none"] = 0.9,
) -> LocalSGD:
    return LocalSGD(context, every(period), Nesterov(outer_lr, outer_momentum))

"""Local steps, then an outer step with momentum along the mean of what all ranks moved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvd_train.options import Annotated, Fraction, PositiveFloat, PositiveInt
from hvd_train.sync.base import Context
from hvd_train.sync.local_sgd import LocalSGD


def outer_step(start: Tensor, mean: Tensor, velocity: Tensor, lr: float, momentum: float) -> Tensor:
    """w_0 - lr (d + momentum v), where d = w_0 - mean(w_i) and v <- momentum v + d in place: Nesterov's step, as torch takes it.

    Written such that lr 1 and momentum 0 give the mean to the bit.
    """
    delta = start - mean
    velocity.mul_(momentum).add_(delta)
    return mean + (1 - lr) * delta - lr * momentum * velocity


class DiLoCo(LocalSGD):
    """H inner steps on every rank, then one outer step from where they began (Douillard et al., arXiv 2311.08105).

    Inner optimizers keep their state from round to round. An unfinished last round ends with an outer step too.
    """

    anchored = True
    takes_parts = False

    def __init__(self, context: Context, period: int, outer_lr: float, outer_momentum: float) -> None:
        super().__init__(context, period, post_local=0)
        self._lr, self._momentum = outer_lr, outer_momentum
        self._velocities: list[Tensor] = []

    def follow(self) -> None:
        super().follow()
        self._velocities += [torch.zeros_like(a) for a in self.anchors[len(self._velocities) :]]

    @torch.no_grad()
    def advance_(self) -> None:
        for flat, start, velocity in zip(self.flat.tensors, self.anchors, self._velocities, strict=True):
            flat.copy_(outer_step(start, flat, velocity, self._lr, self._momentum))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "velocities": self.flat.by_name(self._velocities)}

    def go_on(self, state: dict[str, Any]) -> None:
        super().go_on(state)
        self.flat.restore_(self._velocities, state["velocities"])


def create(
    context: Context,
    *,
    period: Annotated[PositiveInt, "inner steps between two outer ones: the bytes fall by this factor"] = 50,
    outer_lr: Annotated[PositiveFloat, "of the outer optimizer; 1 goes to the mean of all ranks"] = 0.7,
    outer_momentum: Annotated[Fraction, "of the outer optimizer, Nesterov's; 0: none"] = 0.9,
) -> DiLoCo:
    return DiLoCo(context, period, outer_lr, outer_momentum)

"""Scales rewards before an agent learns from them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Sum = Callable[[Tensor], Tensor]


class RewardScale:
    """Multiplies rewards by `factor`, and divides them by the deviation of discounted returns.

    The deviation is that of all returns of all ranks so far. `discount` is None without it.
    """

    def __init__(self, factor: float, discount: float | None) -> None:
        self._factor, self._discount = factor, discount
        self._returns = torch.zeros(0, dtype=torch.float64)
        self._sums = torch.zeros(3, dtype=torch.float64)
        """Number, sum and sum of squares of the returns."""

    def scaled(self, rewards: Tensor, ended: Tensor, add: Sum, active: Tensor | None = None) -> Tensor:
        """Return the rewards `(steps, rows)` of a rollout, scaled; collective.

        The returns of agents that are not `active` do not count; None: all are.
        """
        if self._discount is None:
            return rewards * self._factor
        running = self._returns if len(self._returns) else torch.zeros(rewards.shape[1], dtype=torch.float64)
        returns = torch.empty_like(rewards)
        for step in range(len(rewards)):
            running = running * self._discount + rewards[step]
            returns[step] = running
            running = running * ~ended[step]
        self._returns = running
        counted = returns if active is None else returns[active]
        self._sums += add(torch.stack([torch.tensor(float(counted.numel())), counted.sum(), counted.square().sum()]))
        number, total, squares = map(float, self._sums)
        variance = squares / number - (total / number) ** 2
        deviation: float = max(variance, 1e-8) ** 0.5
        return rewards * (self._factor / deviation)

    def state(self) -> dict[str, Tensor]:
        """Return what `load` resumes from."""
        return {} if self._discount is None else {"returns": self._returns, "sums": self._sums}

    def load(self, state: dict[str, Tensor]) -> None:
        if state:
            self._returns, self._sums = state["returns"].clone(), state["sums"].clone()

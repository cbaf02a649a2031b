"""A learner for tests of one agent, without a trainer: its model is a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hvd_train.agents.base import Rollout

Model = Callable[[Any, Mapping[str, Tensor]], Tensor]
"""Returns outputs for inputs by parameters."""


@dataclass
class Alone:
    """The only rank, with one sample in a batch."""

    model: Model
    own: dict[str, Tensor] = field(default_factory=dict)
    """The parameters of the model."""
    share: float = 0.0
    workers: int = 1
    batch_size: int = 1
    active: Tensor | None = None

    def predict(self, observations: Any, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.model(observations, self.own if parameters is None else parameters)

    def parameters(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.own.items()}

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def sum(self, values: Tensor) -> Tensor:
        return values


def step(
    reward: float, outputs: Tensor, action: Tensor, *, terminated: bool = True, observation: float = 0.0
) -> Rollout:
    """Return one step of one row, with which the episode ended."""
    seen = torch.full((1, 1, 1), observation)
    ended = torch.ones((1, 1), dtype=torch.bool)
    rewards = torch.full((1, 1), reward, dtype=torch.float64)
    return Rollout(
        seen,
        action.reshape(1, 1, *action.shape),
        outputs.reshape(1, 1, -1),
        rewards,
        seen + 1,
        ended & terminated,
        ended,
    )

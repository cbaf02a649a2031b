"""The policy that a trained agent is used with: a model of observations whose outputs are actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvd_train.agents.base import Agent
from hvd_train.data.environments.base import Actions


class Greedy(nn.Module):
    """The best actions of an agent.

    For each observation it returns a score of each choice, the best one highest, or the numbers of
    the best action, within their bounds.
    """

    low: Tensor
    high: Tensor

    def __init__(self, model: nn.Module, agent: Agent, actions: Actions) -> None:
        super().__init__()
        self.model = model
        self._choices, self._best = actions.choices, agent.best
        if not self._choices:
            self.register_buffer("low", torch.tensor(actions.low), persistent=False)
            self.register_buffer("high", torch.tensor(actions.high), persistent=False)

    def forward(self, observation: Tensor) -> Tensor:
        outputs: Tensor = self.model(observation)
        if self._choices:
            return outputs[:, : self._choices]
        return self._best(outputs).clamp(self.low, self.high)

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

    def __init__(self, model: nn.Module, agent: Agent, actions: Actions) -> None:
        super().__init__()
        self.model = model
        self._actions, self._best = actions, agent.best

    def forward(self, observation: Tensor) -> Tensor:
        outputs: Tensor = self.model(observation)
        if self._actions.choices:
            return outputs[:, : self._actions.choices]
        return within(self._best(outputs), self._actions)


def within(taken: Tensor, actions: Actions) -> Tensor:
    """Return actions that are numbers within their bounds, as an environment takes them; choices as they are."""
    if actions.choices:
        return taken
    return taken.clamp(*(torch.tensor(side, dtype=taken.dtype) for side in (actions.low, actions.high)))

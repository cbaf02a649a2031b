"""The agents that learn once from each rollout, by the policy gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hvd_train.agents.actor_critic import ActorCritic, normalised
from hvd_train.agents.base import Agent, Learner, Lesson, Loss, Rollout


class PolicyGradient(Agent):
    """Makes actions more probable by their advantages, which are estimated by GAE."""

    def __init__(self, parts: ActorCritic, gamma: float, lam: float, normalises: bool) -> None:
        super().__init__(parts.outputs, parts.policy.noise, discount=gamma, figures=parts.figures)
        self._parts, self._lam, self._normalises = parts, lam, normalises

    def act(self, outputs: Tensor, noise: Tensor, share: float) -> Tensor:
        return self._parts.act(outputs, noise)

    def best(self, outputs: Tensor) -> Tensor:
        return self._parts.best(outputs)

    def learn(self, rollout: Rollout, learner: Learner) -> Lesson:
        advantages, returns = self._parts.advantages(rollout, learner, self.discount, self._lam)
        weights = normalised(advantages, learner) if self._normalises else advantages
        return self._parts.lesson(rollout, weights, returns)

    def loss(self, outputs: Any, targets: Mapping[str, Tensor]) -> Loss:
        logarithms, losses = self._parts.compare(outputs, targets)
        return {"policy": -(logarithms * targets["advantages"]).sum(), **losses}

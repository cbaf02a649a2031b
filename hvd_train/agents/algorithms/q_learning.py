"""Q-learning: a table learns the values of the best policy, whatever the agent tries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hvd_train.agents.action_values import choices, taken, targets
from hvd_train.agents.base import Agent, AgentContext, Learner, Lesson, Loss, Rollout, following_outputs
from hvd_train.agents.exploration import Exploration, Linear, exploration_for
from hvd_train.agents.table import TableUpdates
from hvd_train.config.options import (
    Discount,
    ExplorationKind,
    ExplorationShare,
    FinalExploration,
    FirstExploration,
    TableRate,
    VisitPower,
)


def create(
    context: AgentContext,
    *,
    gamma: Discount = 0.99,
    rate: TableRate = 0.5,
    visit_power: VisitPower = 0.0,
    exploration: ExplorationKind = "epsilon_greedy",
    first_exploration: FirstExploration = 1.0,
    final_exploration: FinalExploration = 0.05,
    exploration_share: ExplorationShare = 0.5,
) -> Agent:
    updates = TableUpdates(context, "q_learning", rate, visit_power)
    schedule = Linear(first_exploration, final_exploration, exploration_share)
    number = choices(context, "q_learning")
    return QLearning(number, updates, exploration_for(exploration, number, schedule), gamma)


class QLearning(Agent):
    """Watkins and Dayan 1992."""

    def __init__(self, outputs: int, updates: TableUpdates, exploration: Exploration, gamma: float) -> None:
        super().__init__(outputs, exploration.noise, discount=gamma)
        self._updates, self._exploration = updates, exploration

    def act(self, outputs: Tensor, noise: Tensor, share: float) -> Tensor:
        return self._exploration.choose(outputs, noise, share)

    def best(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)

    def learn(self, rollout: Rollout, learner: Learner) -> Lesson:
        following = following_outputs(rollout, learner.predict).amax(-1).double()
        wanted = targets(rollout.rewards, following, rollout.terminated, self.discount)
        errors = wanted - taken(rollout.outputs, rollout.actions)
        self.figures.add("td_error", float(errors.abs().sum()), errors.numel())
        return self._updates.lesson(rollout.observations, rollout.actions, errors, learner)

    def loss(self, outputs: Any, targets: Mapping[str, Tensor]) -> Loss:
        return self._updates.loss(outputs, targets)

    def state(self) -> dict[str, Tensor]:
        return self._updates.state()

    def load(self, state: dict[str, Tensor]) -> None:
        self._updates.load(state)

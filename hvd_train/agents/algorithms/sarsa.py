"""SARSA: a table learns the values of the policy that acts, its exploration included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hvd_train.agents.action_values import choices, taken, targets
from hvd_train.agents.base import TRANSITION, Agent, AgentContext, Learner, Lesson, Loss, Rollout
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
from hvd_train.errors import UserError
from hvd_train.state.packing import with_prefix


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
    updates = TableUpdates(context, "sarsa", rate, visit_power)
    schedule = Linear(first_exploration, final_exploration, exploration_share)
    number = choices(context, "sarsa")
    return Sarsa(number, updates, exploration_for(exploration, number, schedule), gamma)


class Sarsa(Agent):
    """Rummery and Niranjan 1994.

    A step is learned from once the action after it is taken: the last step of an epoch waits for the
    first action of the next epoch. No action follows where a limit cuts an episode off; the value of
    its last state is then the expectation over the actions that the policy chooses.
    """

    def __init__(self, outputs: int, updates: TableUpdates, exploration: Exploration, gamma: float) -> None:
        super().__init__(outputs, exploration.noise, discount=gamma)
        self._updates, self._exploration = updates, exploration
        self._waiting: dict[str, Tensor] = {}
        """The last step of the epoch before, by the fields of a rollout."""

    def act(self, outputs: Tensor, noise: Tensor, share: float) -> Tensor:
        return self._exploration.choose(outputs, noise, share)

    def best(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)

    def learn(self, rollout: Rollout, learner: Learner) -> Lesson:
        if not self._waiting and len(rollout.rewards) == 1:
            raise UserError("data.steps: sarsa learns from a step once the next action is taken; expected 2 or more")
        done = {name: self._with_waiting(name, getattr(rollout, name)) for name in TRANSITION}
        steps = len(done["rewards"])
        values = taken(learner.predict(done["observations"]), done["actions"]).double()
        following = taken(rollout.outputs, rollout.actions)[-steps:].double()
        cut = done["ended"] & ~done["terminated"]
        if cut.any():
            last = learner.predict(done["following"][cut])
            following[cut] = (self._exploration.probabilities(last, learner.share) * last).sum(-1).double()
        errors = targets(done["rewards"], following, done["terminated"], self.discount) - values
        self.figures.add("td_error", float(errors.abs().sum()), errors.numel())
        self._waiting = {name: getattr(rollout, name)[-1:] for name in TRANSITION}
        return self._updates.lesson(done["observations"], done["actions"], errors, learner)

    def loss(self, outputs: Any, targets: Mapping[str, Tensor]) -> Loss:
        return self._updates.loss(outputs, targets)

    def state(self) -> dict[str, Tensor]:
        return {**self._updates.state(), **{f"waiting.{name}": value for name, value in self._waiting.items()}}

    def load(self, state: dict[str, Tensor]) -> None:
        self._updates.load(state)
        self._waiting = {name: value.clone() for name, value in with_prefix("waiting.", state).items()}

    def _with_waiting(self, name: str, values: Tensor) -> Tensor:
        """Return the steps whose next action is known: the waiting one, and all of this epoch but the last."""
        return torch.cat((self._waiting[name], values[:-1])) if self._waiting else values[:-1]

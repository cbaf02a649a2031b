"""Deep Q-network: a network learns the values of actions from samples of a replay memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from hvd_train.agents.action_values import choices, taken, targets
from hvd_train.agents.base import Agent, AgentContext, Learner, Lesson, Loss, Rollout
from hvd_train.agents.exploration import Exploration, Linear, exploration_for
from hvd_train.agents.replay import Memory, Prioritised, Sampling, Uniform
from hvd_train.agents.updates import Updates
from hvd_train.config.options import (
    Annotated,
    Discount,
    ExplorationKind,
    ExplorationShare,
    Field,
    FinalExploration,
    FirstExploration,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from hvd_train.state.packing import with_prefix


def create(
    context: AgentContext,
    *,
    gamma: Discount = 0.99,
    double: Annotated[bool, "the model chooses the next action, and the target network says its value"] = True,
    duelling: Annotated[bool, "the model puts out a value and advantages, one number more than actions"] = False,
    prioritised: Annotated[bool, "samples with larger errors are replayed more often"] = False,
    priority_power: Annotated[
        Annotated[float, Field(ge=0, le=1)], "prioritised: power of the error in a priority (alpha); 0: uniform"
    ] = 0.6,
    correction_power: Annotated[
        Annotated[float, Field(ge=0, le=1)],
        "prioritised: power of the importance weights at the start (beta); it rises to 1 in train.env_steps",
    ] = 0.4,
    n_step: Annotated[PositiveInt, "steps whose rewards are summed before the value of what follows"] = 1,
    buffer: Annotated[PositiveInt, "steps that all ranks together remember"] = 50_000,
    warmup: Annotated[NonNegativeInt, "environment steps of all ranks before the first update"] = 1000,
    updates: Annotated[PositiveFloat, "steps of the optimizer for each environment step of all ranks together"] = 0.25,
    target_interval: Annotated[
        PositiveInt, "updates after which the target network is renewed, at the start of the next epoch"
    ] = 500,
    exploration: ExplorationKind = "epsilon_greedy",
    first_exploration: FirstExploration = 1.0,
    final_exploration: FinalExploration = 0.05,
    exploration_share: ExplorationShare = 0.2,
) -> Agent:
    number = choices(context, "dqn")
    return DQN(
        number,
        exploration_for(exploration, number, Linear(first_exploration, final_exploration, exploration_share)),
        Memory(buffer),
        Prioritised(priority_power, correction_power) if prioritised else Uniform(),
        gamma=gamma,
        double=double,
        duelling=duelling,
        n_step=n_step,
        warmup=warmup,
        updates=updates,
        target_interval=target_interval,
    )


class DQN(Agent):
    """Mnih et al. 2015, with the double estimate of van Hasselt et al. 2016 and the duelling network of Wang et al. 2016.

    The targets of all updates of an epoch are computed at its start. So keep epochs short.
    """

    def __init__(
        self,
        number: int,
        exploration: Exploration,
        memory: Memory,
        sampling: Sampling,
        *,
        gamma: float,
        double: bool,
        duelling: bool,
        n_step: int,
        warmup: int,
        updates: float,
        target_interval: int,
    ) -> None:
        super().__init__(number + duelling, exploration.noise, warmup=warmup, discount=gamma)
        self._exploration, self._memory, self._sampling = exploration, memory, sampling
        self._double, self._duelling, self._n_step = double, duelling, n_step
        self._updates, self._interval = Updates(updates, warmup), target_interval
        self._target: dict[str, Tensor] = {}
        self._since = 0
        """Updates since the target network was renewed."""

    def act(self, outputs: Tensor, noise: Tensor, share: float) -> Tensor:
        return self._exploration.choose(self._values(outputs), noise, share)

    def best(self, outputs: Tensor) -> Tensor:
        return self._values(outputs).argmax(-1)

    def learn(self, rollout: Rollout, learner: Learner) -> Lesson:
        number = self._updates.due(rollout, learner)
        self._sampling.add(self._memory.add(rollout, learner.workers), self._memory.capacity)
        if not self._target or self._since >= self._interval:
            self._target, self._since = learner.parameters(), 0
        self._since += number
        positions, weights = self._sampling.draw(
            number, learner.batch_size, self._memory.size, learner.share, learner.generator()
        )
        found = self._memory.transitions(positions, self._n_step, self.discount)
        following = self._values(learner.predict(found.following, self._target))
        chosen = self._values(learner.predict(found.following)) if self._double else following
        values = taken(following, chosen.argmax(-1)).double()
        wanted = targets(found.rewards, values, found.terminated, found.discounts)
        kind = rollout.outputs.dtype
        parts = {
            "actions": found.actions,
            "values": wanted.to(kind),
            "weights": weights.to(kind),
            "positions": positions,
        }
        return Lesson(found.observations, parts, in_order=True)

    def loss(self, outputs: Any, targets: Mapping[str, Tensor]) -> Loss:
        values = taken(self._values(outputs), targets["actions"])
        errors = (values - targets["values"]).detach().cpu()
        self._sampling.update(targets["positions"].cpu(), errors)
        self.figures.add("td_error", float(errors.abs().sum()), len(errors))
        self.figures.add("value", float(values.detach().sum()), len(errors))
        # The gradient of a sample is its error, cut off at 1 (Mnih et al. 2015).
        return (targets["weights"] * smooth_l1_loss(values, targets["values"], reduction="none")).sum()

    def state(self) -> dict[str, Tensor]:
        return {
            "since": torch.tensor(self._since),
            **{f"updates.{name}": value for name, value in self._updates.state().items()},
            **{f"memory.{name}": value for name, value in self._memory.state().items()},
            **{f"sampling.{name}": value for name, value in self._sampling.state().items()},
            **{f"target.{name}": value for name, value in self._target.items()},
        }

    def load(self, state: dict[str, Tensor]) -> None:
        self._since = int(state["since"])
        self._updates.load(with_prefix("updates.", state))
        self._memory.load(with_prefix("memory.", state))
        self._sampling.load(with_prefix("sampling.", state))
        self._target = with_prefix("target.", state)

    def _values(self, outputs: Tensor) -> Tensor:
        """Return the value of each action."""
        if not self._duelling:
            return outputs
        value, advantages = outputs[..., :1], outputs[..., 1:]
        return value + advantages - advantages.mean(-1, keepdim=True)

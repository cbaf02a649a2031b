"""Soft actor-critic: continuous actions, learned from a replay buffer, with a reward for entropy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hvd_train.agents.base import Agent, AgentContext, Learner, Lesson, Loss, Rollout
from hvd_train.agents.noise import Noise
from hvd_train.agents.replay import Memory, Transitions, Uniform
from hvd_train.agents.updates import Updates
from hvd_train.config.options import Annotated, Discount, Field, NonNegativeInt, PositiveFloat, PositiveInt
from hvd_train.data.environments.base import Actions
from hvd_train.errors import UserError
from hvd_train.models import squashed
from hvd_train.state.packing import with_prefix


def create(
    context: AgentContext,
    *,
    gamma: Discount = 0.99,
    buffer: Annotated[PositiveInt, "steps that all ranks together remember"] = 1_000_000,
    warmup: Annotated[NonNegativeInt, "environment steps of all ranks before the first update"] = 1000,
    updates: Annotated[PositiveFloat, "steps of the optimizer for each environment step of all ranks together"] = 1.0,
    tau: Annotated[
        Annotated[float, Field(gt=0, le=1)], "part of the critics that their targets take over at each update"
    ] = 0.005,
    target_entropy: Annotated[
        float | None, "entropy that the temperature is to keep, in nats; by default minus the numbers of an action"
    ] = None,
) -> Agent:
    if context.actions.choices:
        raise UserError(
            f"agent.name: 'sac' chooses numbers, and an action of the environment is {context.actions}; take 'ppo' or 'dqn'"
        )
    entropy = -float(context.actions.numbers) if target_entropy is None else target_entropy
    return SAC(
        context.actions, Memory(buffer), Updates(updates, warmup), gamma, warmup=warmup, tau=tau, entropy=entropy
    )


class SAC(Agent):
    """Haarnoja et al. 2018, arXiv 1812.05905, with a learned temperature.

    The targets of an epoch's updates are made when it begins, of the target critics and the policy
    of that time: epochs should be short. Actions are learned in units of half their range.
    """

    takes: ClassVar[tuple[str, ...]] = ("observation", "action", "noise")

    def __init__(
        self,
        actions: Actions,
        memory: Memory,
        updates: Updates,
        gamma: float,
        *,
        warmup: int,
        tau: float,
        entropy: float,
    ) -> None:
        super().__init__(2 * actions.numbers, Noise("normal", actions.numbers), warmup=warmup, discount=gamma)
        low, high = torch.tensor(actions.low), torch.tensor(actions.high)
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self._memory, self._updates, self._tau, self._entropy = memory, updates, tau, entropy
        self._critics: dict[str, Tensor] = {}
        """Parameters of the target critics."""
        self._pending = 0
        """Updates that the target critics have not followed yet."""

    def act(self, outputs: Tensor, noise: Tensor, share: float) -> Tensor:
        return self._middle + self._half * squashed.sample(outputs, noise)[0]

    def best(self, outputs: Tensor) -> Tensor:
        return self._middle + self._half * squashed.mode(outputs)

    def learn(self, rollout: Rollout, learner: Learner) -> Lesson:
        self._memory.add(replace(rollout, actions=(rollout.actions - self._middle) / self._half), learner.workers)
        parameters = learner.parameters()
        self._follow({name: value for name, value in parameters.items() if "critics" in name.split(".")})
        self._pending = self._updates.due(rollout, learner)
        generator = learner.generator()
        positions, _ = Uniform().draw(self._pending, learner.batch_size, self._memory.size, learner.share, generator)
        found = self._memory.transitions(positions, 1, self.discount)
        noise = torch.randn(2, *found.actions.shape, generator=generator)
        following = {"observation": found.following, "action": found.actions, "noise": noise[0]}
        returns = _returns(found, learner.predict(following, {**parameters, **self._critics}))
        inputs = {"observation": found.observations, "action": found.actions, "noise": noise[1]}
        return Lesson(inputs, {"returns": returns}, in_order=True)

    def loss(self, outputs: Any, targets: Mapping[str, Tensor]) -> Loss:
        critics, judged, density, logarithm = outputs.split((2, 2, 1, 1), dim=1)
        temperature, short = logarithm.detach().exp(), (density + self._entropy).detach()
        errors = (critics - targets["returns"].unsqueeze(1)).square().sum()
        counted = torch.stack([-density.sum(), errors / 2, temperature.sum(), critics.mean(1).sum()]).detach().tolist()
        for name, value in zip(("entropy", "value_error", "temperature", "value"), counted, strict=True):
            self.figures.add(name, value, len(density))
        return {
            "critic": errors / 2,
            "actor": (temperature * density - judged.min(dim=1, keepdim=True).values).sum(),
            "temperature": -(logarithm * short).sum(),
        }

    def state(self) -> dict[str, Tensor]:
        return {
            "pending": torch.tensor(self._pending),
            **{f"updates.{name}": value for name, value in self._updates.state().items()},
            **{f"memory.{name}": value for name, value in self._memory.state().items()},
            **{f"critics.{name}": value for name, value in self._critics.items()},
        }

    def load(self, state: dict[str, Tensor]) -> None:
        self._pending = int(state["pending"])
        self._updates.load(with_prefix("updates.", state))
        self._memory.load(with_prefix("memory.", state))
        self._critics = {name: value.clone() for name, value in with_prefix("critics.", state).items()}

    def _follow(self, critics: dict[str, Tensor]) -> None:
        """Move the target critics towards `critics`, by as many steps as there were updates since the last call."""
        kept = (1 - self._tau) ** self._pending
        before = self._critics or critics
        self._critics = {n: torch.lerp(value, before[n].to(value.device), kept) for n, value in critics.items()}


def _returns(found: Transitions, outputs: Tensor) -> Tensor:
    """Return rewards and the soft values after them, given what target critics and policy put out for what followed."""
    _, judged, density, logarithm = outputs.double().split((2, 2, 1, 1), dim=1)
    soft = judged.min(dim=1).values - (logarithm.exp() * density).squeeze(1)
    goes_on = (~found.terminated).double()
    returns: Tensor = found.rewards + found.discounts * goes_on * soft
    return returns.to(outputs.dtype)

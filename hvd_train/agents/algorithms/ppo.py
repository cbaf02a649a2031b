"""Proximal policy optimisation: several passes over each rollout, with clipped steps of the policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from hvd_train.agents.actor_critic import ActorCritic, normalised
from hvd_train.agents.base import Agent, AgentContext, Learner, Lesson, Loss, Rollout
from hvd_train.config.options import (
    Annotated,
    ClipRange,
    Discount,
    EntropyWeight,
    GaeLambda,
    NormaliseAdvantages,
    Passes,
    ValueWeight,
)


def create(
    context: AgentContext,
    *,
    gamma: Discount = 0.99,
    lam: GaeLambda = 0.95,
    passes: Passes = 10,
    clip: ClipRange = 0.2,
    clip_schedule: Annotated[
        Literal["constant", "linear"], "linear: the clip range falls to 0 in the run"
    ] = "constant",
    value_weight: ValueWeight = 0.5,
    entropy_weight: EntropyWeight = 0.0,
    normalise_advantages: NormaliseAdvantages = True,
) -> Agent:
    return PPO(
        ActorCritic(context, value_weight, entropy_weight),
        gamma=gamma,
        lam=lam,
        passes=passes,
        clip=clip,
        falls=clip_schedule == "linear",
        normalises=normalise_advantages,
    )


class PPO(Agent):
    """Schulman et al. 2017, with the clipped objective and generalised advantage estimates."""

    def __init__(
        self,
        parts: ActorCritic,
        *,
        gamma: float,
        lam: float,
        passes: int,
        clip: float,
        falls: bool,
        normalises: bool,
    ) -> None:
        super().__init__(parts.outputs, parts.policy.noise, passes, discount=gamma, figures=parts.figures)
        self._parts, self._lam, self._normalises = parts, lam, normalises
        self._widest, self._falls, self._clip = clip, falls, clip

    def act(self, outputs: Tensor, noise: Tensor, share: float) -> Tensor:
        return self._parts.act(outputs, noise)

    def best(self, outputs: Tensor) -> Tensor:
        return self._parts.best(outputs)

    def learn(self, rollout: Rollout, learner: Learner) -> Lesson:
        self._clip = self._widest * (1 - learner.share) if self._falls else self._widest
        advantages, returns = self._parts.advantages(rollout, learner, self.discount, self._lam)
        weights = normalised(advantages, learner) if self._normalises else advantages
        found = self._parts.lesson(rollout, weights, returns)
        before = self._parts.log_probability(rollout.outputs, rollout.actions)
        return replace(found, targets={**found.targets, "log_probabilities": before.flatten()})

    def loss(self, outputs: Any, targets: Mapping[str, Tensor]) -> Loss:
        logarithms, losses = self._parts.compare(outputs, targets)
        difference = logarithms - targets["log_probabilities"]
        ratio, advantages = difference.exp(), targets["advantages"]
        clipped = ratio.clamp(1 - self._clip, 1 + self._clip)
        self._count(ratio.detach(), difference.detach())
        return {"policy": -torch.minimum(ratio * advantages, clipped * advantages).sum(), **losses}

    def state(self) -> dict[str, Tensor]:
        return {"clip": torch.tensor(self._clip, dtype=torch.float64)}

    def load(self, state: dict[str, Tensor]) -> None:
        self._clip = float(state["clip"])

    def _count(self, ratio: Tensor, difference: Tensor) -> None:
        # Schulman's estimate of the KL divergence, which is never negative.
        divergence = (ratio - 1 - difference).sum()
        outside = ((ratio - 1).abs() > self._clip).sum()
        found = torch.stack([divergence, outside.to(divergence.dtype)]).tolist()
        for name, value in zip(("kl", "clip_share"), found, strict=True):
            self.figures.add(name, value, len(ratio))

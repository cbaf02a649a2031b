"""Proximal policy optimisation: several passes over each rollout, with clipped steps of the policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from hvd_train.agents.actor_critic import ActorCritic, explained_variance, normalised
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
        ActorCritic(context),
        gamma=gamma,
        lam=lam,
        passes=passes,
        clip=clip,
        falls=clip_schedule == "linear",
        value_weight=value_weight,
        entropy_weight=entropy_weight,
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
        value_weight: float,
        entropy_weight: float,
        normalises: bool,
    ) -> None:
        super().__init__(parts.outputs, parts.policy.noise, passes, discount=gamma)
        self._parts, self._lam, self._normalises = parts, lam, normalises
        self._widest, self._falls, self._clip = clip, falls, clip
        self._value_weight, self._entropy_weight = value_weight, entropy_weight

    def act(self, outputs: Tensor, noise: Tensor, share: float) -> Tensor:
        return self._parts.act(outputs, noise)

    def best(self, outputs: Tensor) -> Tensor:
        return self._parts.best(outputs)

    def learn(self, rollout: Rollout, learner: Learner) -> Lesson:
        self._clip = self._widest * (1 - learner.share) if self._falls else self._widest
        advantages, returns = self._parts.advantages(rollout, learner, self.discount, self._lam)
        self.figures.add("explained_variance", explained_variance(returns, returns - advantages))
        if self._normalises:
            advantages = normalised(advantages, learner)
        kind = rollout.outputs.dtype
        targets = {
            "actions": rollout.actions.flatten(0, 1),
            "log_probabilities": self._parts.log_probability(rollout.outputs, rollout.actions).flatten(),
            "advantages": advantages.flatten().to(kind),
            "returns": returns.flatten().to(kind),
        }
        return Lesson(rollout.observations.flatten(0, 1), targets)

    def loss(self, outputs: Any, targets: Mapping[str, Tensor]) -> Loss:
        policy, values = outputs[:, :-1], outputs[:, -1]
        logarithms = self._parts.policy.log_probability(policy, targets["actions"])
        difference = logarithms - targets["log_probabilities"]
        ratio, advantages = difference.exp(), targets["advantages"]
        clipped = ratio.clamp(1 - self._clip, 1 + self._clip)
        entropy = self._parts.policy.entropy(policy).sum()
        errors = (values - targets["returns"]).square().sum()
        self._count(ratio.detach(), difference.detach(), entropy.detach(), errors.detach())
        return {
            "policy": -torch.minimum(ratio * advantages, clipped * advantages).sum(),
            "value": self._value_weight * errors,
            "entropy": -self._entropy_weight * entropy,
        }

    def _count(self, ratio: Tensor, difference: Tensor, entropy: Tensor, errors: Tensor) -> None:
        samples = len(ratio)
        # Schulman's estimate of the KL divergence, which is never negative.
        divergence = (ratio - 1 - difference).sum()
        outside = ((ratio - 1).abs() > self._clip).sum()
        found = torch.stack([divergence, outside.to(divergence.dtype), entropy, errors]).tolist()
        for name, value in zip(("kl", "clip_share", "entropy", "value_error"), found, strict=True):
            self.figures.add(name, value, samples)

"""What the agents with a policy and a value have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.agents.base import AgentContext, Learner, Rollout, following_outputs
from hvd_train.agents.policies import Policy, policy_for
from hvd_train.agents.returns import gae


class ActorCritic:
    """A policy and a value: the last of the model's outputs is the value, the others the policy."""

    def __init__(self, context: AgentContext) -> None:
        self.policy: Policy = policy_for(context.actions)
        self.outputs = self.policy.size + 1

    def act(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return self.policy.sample(outputs[..., :-1], noise)

    def best(self, outputs: Tensor) -> Tensor:
        return self.policy.mode(outputs[..., :-1])

    def log_probability(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return self.policy.log_probability(outputs[..., :-1], actions)

    def advantages(self, rollout: Rollout, learner: Learner, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
        """Return advantages by GAE, and the returns that the values are to become, float64."""
        values = rollout.outputs[..., -1].double()
        following = following_outputs(rollout, learner.predict)[..., -1].double()
        found = gae(rollout, values, following, gamma, lam)
        return found, found + values


def normalised(values: Tensor, learner: Learner) -> Tensor:
    """Return `values` with mean 0 and variance 1 over all ranks that learn together; collective.

    Those of agents that are not active do not count.
    """
    counted = values if learner.active is None else values[learner.active]
    own = torch.tensor([counted.numel(), float(counted.sum()), float(counted.square().sum())], dtype=torch.float64)
    number, total, squares = map(float, learner.sum(own))
    mean = total / number
    deviation: float = max(squares / number - mean * mean, 0.0) ** 0.5
    scaled: Tensor = (values - mean) / (deviation + 1e-8)
    return scaled


def explained_variance(returns: Tensor, values: Tensor) -> float:
    """Return the share of the variance of `returns` that `values` explain; 0 without any variance."""
    variance = float(returns.var(unbiased=False))
    return 1 - float((returns - values).var(unbiased=False)) / variance if variance else 0.0

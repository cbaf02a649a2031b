"""What the agents with a policy and a value have in common."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hvd_train.agents.base import AgentContext, Learner, Lesson, Rollout, following_outputs
from hvd_train.agents.figures import Figures
from hvd_train.agents.policies import Policy, policy_for
from hvd_train.agents.returns import gae


class ActorCritic:
    """A policy and a value: the last of the model's outputs is the value, the others the policy."""

    def __init__(self, context: AgentContext, value_weight: float, entropy_weight: float) -> None:
        """The weights are those of the squared error of the value and of the entropy in the loss."""
        self.policy: Policy = policy_for(context.actions)
        self.outputs = self.policy.size + 1
        self.figures = Figures()
        self._value_weight, self._entropy_weight = value_weight, entropy_weight

    def act(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return self.policy.sample(outputs[..., :-1], noise)

    def best(self, outputs: Tensor) -> Tensor:
        return self.policy.mode(outputs[..., :-1])

    def log_probability(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return self.policy.log_probability(outputs[..., :-1], actions)

    def values(self, rollout: Rollout, learner: Learner) -> tuple[Tensor, Tensor]:
        """Return the values of the observations and of what followed, float64."""
        following = following_outputs(rollout, learner.predict)
        return rollout.outputs[..., -1].double(), following[..., -1].double()

    def advantages(self, rollout: Rollout, learner: Learner, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
        """Return advantages by GAE, and the returns that the values are to become, float64."""
        values, following = self.values(rollout, learner)
        found = gae(rollout, values, following, gamma, lam)
        return found, found + values

    def lesson(self, rollout: Rollout, advantages: Tensor, returns: Tensor) -> Lesson:
        """Return the samples of a rollout, in the order of steps and rows."""
        values, kind = rollout.outputs[..., -1].double(), rollout.outputs.dtype
        self.figures.add("explained_variance", explained_variance(returns, values))
        targets = {
            "actions": rollout.actions.flatten(0, 1),
            "advantages": advantages.flatten().to(kind),
            "returns": returns.flatten().to(kind),
        }
        return Lesson(rollout.observations.flatten(0, 1), targets)

    def compare(self, outputs: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the log-probabilities of the actions, and the losses of value and entropy."""
        policy, values = outputs[:, :-1], outputs[:, -1]
        logarithms, entropies = self.policy.assess(policy, targets["actions"])
        entropy = entropies.sum()
        errors = (values - targets["returns"]).square().sum()
        counted = torch.stack([entropy, errors]).detach().tolist()
        for name, value in zip(("entropy", "value_error"), counted, strict=True):
            self.figures.add(name, value, len(values))
        losses = {"value": self._value_weight * errors, "entropy": -self._entropy_weight * entropy}
        return logarithms, losses


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

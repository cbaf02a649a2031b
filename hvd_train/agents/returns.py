"""What the rewards of a rollout are worth: advantages and returns. All tensors are `(steps, rows)`."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.agents.base import Rollout


def gae(rollout: Rollout, values: Tensor, following: Tensor, gamma: float, lam: float) -> Tensor:
    """Return generalised advantage estimates (Schulman et al. 2016).

    `values` are those of the observations, `following` those of what followed. Nothing follows a
    terminal state; an episode that was cut off goes on by the value of its last observation.
    """
    goes_on = (~rollout.terminated).to(values.dtype)
    errors = rollout.rewards + gamma * following * goes_on - values
    return discounted(errors, (~rollout.ended).to(values.dtype) * (gamma * lam))


def discounted(values: Tensor, weights: Tensor) -> Tensor:
    """Return the sums `s[t] = values[t] + weights[t] * s[t + 1]`."""
    sums = torch.empty_like(values)
    found, added, factors = sums.numpy(), values.numpy(), weights.numpy()
    running = 0.0
    for step in range(len(found) - 1, -1, -1):
        running = added[step] + factors[step] * running
        found[step] = running
    return sums

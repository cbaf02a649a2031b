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


def vtrace(
    rollout: Rollout,
    values: Tensor,
    following: Tensor,
    ratios: Tensor,
    gamma: float,
    *,
    largest_weight: float = 1.0,
    largest_trace: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns by V-trace (Espeholt et al. 2018), for another policy than the one that acted.

    `ratios` are the probabilities of the actions now over those when they were taken.
    `largest_weight` and `largest_trace` limit them, the rho-bar and c-bar of the paper. `values` and
    `following` are as for `gae`. The advantages are weighted by the ratios.
    """
    goes_on, within = (~rollout.terminated).to(values.dtype), (~rollout.ended).to(values.dtype)
    weights, traces = ratios.clamp(max=largest_weight), ratios.clamp(max=largest_trace)
    errors = weights * (rollout.rewards + gamma * following * goes_on - values)
    returns = values + discounted(errors, gamma * traces * within)
    later = following.clone()
    later[:-1] = torch.where(rollout.ended[:-1], following[:-1], returns[1:])
    return weights * (rollout.rewards + gamma * later * goes_on - values), returns


def discounted(values: Tensor, weights: Tensor) -> Tensor:
    """Return the sums `s[t] = values[t] + weights[t] * s[t + 1]`."""
    sums = torch.empty_like(values)
    found, added, factors = sums.numpy(), values.numpy(), weights.numpy()
    running = 0.0
    for step in range(len(found) - 1, -1, -1):
        running = added[step] + factors[step] * running
        found[step] = running
    return sums

"""REINFORCE with a baseline: actions are weighted by the returns that followed them, less a learned value."""

from __future__ import annotations

from hvd_train.agents.actor_critic import ActorCritic
from hvd_train.agents.base import Agent, AgentContext
from hvd_train.agents.policy_gradient import PolicyGradient
from hvd_train.config.options import Discount, EntropyWeight, NormaliseAdvantages, ValueWeight

_ALL_REWARDS = 1.0


def create(
    context: AgentContext,
    *,
    gamma: Discount = 0.99,
    value_weight: ValueWeight = 0.5,
    entropy_weight: EntropyWeight = 0.0,
    normalise_advantages: NormaliseAdvantages = True,
) -> Agent:
    """Return the agent of Williams 1992, whose baseline is the value of the model.

    Returns are those of whole episodes. An episode that goes on after the rollout, or that a limit
    cuts off, has the value of its last observation as the rest of its return: the returns stay
    unbiased by the length of a rollout as far as the value is right. Rollouts (`data.steps`) as long
    as an episode leave the fewest of them.
    """
    parts = ActorCritic(context, value_weight, entropy_weight)
    return PolicyGradient(parts, gamma, _ALL_REWARDS, normalise_advantages)

"""Advantage actor-critic: a policy-gradient step for each rollout, with advantages by a learned value."""

from __future__ import annotations

from hvd_train.agents.actor_critic import ActorCritic
from hvd_train.agents.base import Agent, AgentContext
from hvd_train.agents.policy_gradient import PolicyGradient
from hvd_train.config.options import Discount, EntropyWeight, GaeLambda, NormaliseAdvantages, ValueWeight


def create(
    context: AgentContext,
    *,
    gamma: Discount = 0.99,
    lam: GaeLambda = 1.0,
    value_weight: ValueWeight = 0.5,
    entropy_weight: EntropyWeight = 0.0,
    normalise_advantages: NormaliseAdvantages = False,
) -> Agent:
    """Return the agent of Mnih et al. 2016, whose environments are stepped together.

    With `lam` 1 an advantage has all rewards until the end of the rollout, and the value of what
    comes after it.
    """
    return PolicyGradient(ActorCritic(context, value_weight, entropy_weight), gamma, lam, normalise_advantages)

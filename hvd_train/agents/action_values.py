"""What the agents that learn the values of actions have in common."""

from __future__ import annotations

from torch import Tensor

from hvd_train.agents.base import AgentContext
from hvd_train.errors import UserError


def choices(context: AgentContext, name: str) -> int:
    """Return the number of actions to choose from; UserError if actions are numbers."""
    if not context.actions.choices:
        raise UserError(
            f"agent: '{name}' learns a value for each of several choices, and an action of the environment is "
            f"{context.actions}; take ppo or sac"
        )
    return context.actions.choices


def taken(values: Tensor, actions: Tensor) -> Tensor:
    """Return the values `(..., choices)` of the `actions` `(...)`."""
    return values.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def targets(rewards: Tensor, following: Tensor, terminated: Tensor, discount: Tensor | float) -> Tensor:
    """Return rewards plus the discounted values `following`; nothing follows a terminal state.

    An episode that a limit cut off goes on: its last state has a value.
    """
    return rewards + discount * following * (~terminated).to(following.dtype)

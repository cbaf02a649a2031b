"""What `data.json` of a run says of its agent, so that no environment is needed to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hvd_train.agents.base import AgentContext
from hvd_train.data.environments.base import Actions
from hvd_train.errors import UserError


def facts_of(context: AgentContext) -> dict[str, Any]:
    """Return `context` as JSON."""
    return asdict(context)


def context_of(facts: Mapping[str, Any]) -> AgentContext:
    """Return the context that `facts_of` described."""
    bounds = {side: tuple(facts["actions"][side]) for side in ("low", "high")}
    actions = Actions(**{**facts["actions"], **bounds})
    return AgentContext(**{**facts, "actions": actions, "observed": tuple(facts["observed"])})


def check_same(context: AgentContext, facts: Mapping[str, Any], where: str) -> None:
    """Raise UserError if the actions in `where` are of another kind than those of the run that `facts` describes."""
    wanted = context_of(facts).actions
    if str(context.actions) != str(wanted):
        raise UserError(f"data: an action is {context.actions} in {where}, expected {wanted} as in the run")

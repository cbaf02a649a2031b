"""IMPALA: policy gradients from rollouts of older policies, corrected by V-trace."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from hvd_train.agents.actor_critic import ActorCritic, normalised
from hvd_train.agents.base import Agent, AgentContext, Learner, Lesson, Loss, Rollout
from hvd_train.agents.returns import vtrace
from hvd_train.config.options import (
    Annotated,
    Discount,
    EntropyWeight,
    LargestRatio,
    NonNegativeInt,
    NormaliseAdvantages,
    ValueWeight,
)
from hvd_train.errors import UserError


def create(
    context: AgentContext,
    *,
    gamma: Discount = 0.99,
    replayed: Annotated[NonNegativeInt, "earlier rollouts of this rank that each epoch learns from again"] = 0,
    largest_weight: LargestRatio = 1.0,
    largest_trace: Annotated[LargestRatio, "the same for the steps that lead to later rewards"] = 1.0,
    value_weight: ValueWeight = 0.5,
    entropy_weight: EntropyWeight = 0.0,
    normalise_advantages: NormaliseAdvantages = False,
) -> Agent:
    parts = ActorCritic(context, value_weight, entropy_weight)
    return Impala(
        parts,
        gamma,
        replayed,
        largest_weight=largest_weight,
        largest_trace=largest_trace,
        normalises=normalise_advantages,
    )


@dataclass(frozen=True)
class _Kept:
    """A rollout, and how many batches its policy had learnt from."""

    rollout: Rollout
    version: int


class Impala(Agent):
    """Espeholt et al. 2018. Every rank acts and learns.

    `policy_lag` among the figures is the mean number of batches that a rank has learnt from since
    the policy acted that chose the action of a sample.
    """

    def __init__(
        self,
        parts: ActorCritic,
        gamma: float,
        replayed: int,
        *,
        largest_weight: float,
        largest_trace: float,
        normalises: bool,
    ) -> None:
        super().__init__(parts.outputs, parts.policy.noise, discount=gamma, figures=parts.figures)
        self._parts, self._normalises = parts, normalises
        self._limits = {"largest_weight": largest_weight, "largest_trace": largest_trace}
        self._kept: deque[_Kept] = deque(maxlen=replayed + 1)
        self._version = 0
        """Batches that this rank has learnt from."""

    def act(self, outputs: Tensor, noise: Tensor, share: float) -> Tensor:
        return self._parts.act(outputs, noise)

    def best(self, outputs: Tensor) -> Tensor:
        return self._parts.best(outputs)

    def learn(self, rollout: Rollout, learner: Learner) -> Lesson:
        if learner.active is not None and self._kept.maxlen != 1:
            raise UserError(
                "agent.replayed: agents that end their episodes before others cannot learn from earlier rollouts; "
                "expected 0"
            )
        self._kept.append(_Kept(rollout, self._version))
        now = [replace(kept.rollout, outputs=self._outputs(kept.rollout, learner)) for kept in self._kept]
        found = [self._traced(kept.rollout, new, learner) for kept, new in zip(self._kept, now, strict=True)]
        advantages, returns = (torch.cat(part) for part in zip(*found, strict=True))
        weights = normalised(advantages, learner) if self._normalises else advantages
        lesson = self._parts.lesson(_joined(now), weights, returns)
        ages = [torch.full((kept.rollout.rewards.numel(),), kept.version) for kept in self._kept]
        lesson.targets["versions"] = torch.cat(ages)
        return lesson

    def loss(self, outputs: Any, targets: Mapping[str, Tensor]) -> Loss:
        logarithms, losses = self._parts.compare(outputs, targets)
        lag = self._version - targets["versions"]
        self.figures.add("policy_lag", float(lag.sum()), len(lag))
        self._version += 1
        return {"policy": -(logarithms * targets["advantages"]).sum(), **losses}

    def state(self) -> dict[str, Tensor]:
        versions = torch.tensor([self._version, *(kept.version for kept in self._kept)])
        return {
            "versions": versions,
            **{
                f"{number}.{one.name}": value
                for number, kept in enumerate(self._kept)
                for one in fields(Rollout)
                if (value := getattr(kept.rollout, one.name)) is not None
            },
        }

    def load(self, state: dict[str, Tensor]) -> None:
        self._version, *versions = state["versions"].tolist()
        for number, version in enumerate(versions):
            rollout = Rollout(**{one.name: state.get(f"{number}.{one.name}") for one in fields(Rollout)})  # type: ignore[arg-type]
            self._kept.append(_Kept(rollout, version))

    def _outputs(self, rollout: Rollout, learner: Learner) -> Tensor:
        """Return what the model puts out now for the observations of `rollout`."""
        return learner.predict(rollout.observations.flatten(0, 1)).reshape(rollout.outputs.shape)

    def _traced(self, old: Rollout, now: Rollout, learner: Learner) -> tuple[Tensor, Tensor]:
        values, following = self._parts.values(now, learner)
        difference = self._parts.log_probability(now.outputs, now.actions) - self._parts.log_probability(
            old.outputs, old.actions
        )
        return vtrace(now, values, following, difference.double().exp(), self.discount, **self._limits)


def _joined(rollouts: Iterable[Rollout]) -> Rollout:
    """Return the steps of `rollouts`, one after another."""
    kept = list(rollouts)
    if len(kept) == 1:
        return kept[0]
    names = [one.name for one in fields(Rollout) if getattr(kept[0], one.name) is not None]
    return Rollout(**{name: torch.cat([getattr(rollout, name) for rollout in kept]) for name in names})

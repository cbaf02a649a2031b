"""The contract of an agent, which acts in environments and learns from their rewards.

An agent is a file in `hvd_train/agents/algorithms` whose `create(context, **options)` returns an
`Agent`. The trainer has the model, the optimizer and the strategy. The agent chooses actions by the
outputs of the model, and makes inputs and targets for it of what followed: in each epoch the
`Collector` collects a `Rollout`, and `learn` makes a `Lesson` of it, whose samples are trained on as
those of any other data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from hvd_train.agents.figures import Figures
from hvd_train.agents.noise import Noise
from hvd_train.data.environments.base import Actions
from hvd_train.errors import UserError


@dataclass(frozen=True)
class AgentContext:
    """What an agent is made from."""

    actions: Actions
    observed: tuple[int, ...]
    """The shape of an observation."""
    states: int = 0
    """The states of which an observation is one, as a one-hot vector; 0: observations are numbers."""


@dataclass(frozen=True)
class Rollout:
    """What one rank collected in an epoch: `steps` steps of `rows` agents, `(steps, rows, ...)`."""

    observations: Tensor
    actions: Tensor
    """int64 choices `(steps, rows)`, or numbers `(steps, rows, numbers)`."""
    outputs: Tensor
    """What the model put out for the observations when it acted."""
    rewards: Tensor
    """float64."""
    following: Tensor
    """The observations after the actions; at the end of an episode the last one of it."""
    terminated: Tensor
    """bool: the episode ended in a terminal state, from which no reward follows."""
    ended: Tensor
    """bool: the episode ended, be it in a terminal state or cut off by a limit."""
    active: Tensor | None = None
    """bool: the agent was there. None if all were; else those are not trained on whose episode had ended."""

    @property
    def size(self) -> tuple[int, int]:
        """Steps and rows."""
        return self.rewards.shape[0], self.rewards.shape[1]


TRANSITION = ("observations", "actions", "rewards", "following", "terminated", "ended")
"""The fields of a rollout that an agent keeps to learn from its steps later."""


class Learner(Protocol):
    """What an agent may use of the run while it learns."""

    @property
    def share(self) -> float:
        """The part of the run that is over, from 0 to 1."""

    @property
    def workers(self) -> int:
        """The workers that collect at the same time."""

    @property
    def batch_size(self) -> int:
        """The samples of this rank in a step of the optimizer."""

    @property
    def active(self) -> Tensor | None:
        """`Rollout.active` of the present rollout."""

    def predict(self, observations: Any, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the outputs of the model on the CPU; with other `parameters` than it has, if given."""

    def parameters(self) -> dict[str, Tensor]:
        """Return copies of the parameters and buffers of the model."""

    def generator(self) -> torch.Generator:
        """Return random numbers that belong to this rank's agents and this epoch; equal ones at each call."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over the ranks that learn together; collective."""


@dataclass(frozen=True)
class Lesson:
    """The samples of one epoch."""

    inputs: Any
    """What the model is called with: a tensor, or a dict of tensors."""
    targets: dict[str, Tensor]
    """What `Agent.loss` compares the outputs with, by name."""
    in_order: bool = False
    """True: the samples are trained on once, in their order. False: in `Agent.passes` permutations."""


ACTIVE = "active"
"""The target by which `AgentLoss` leaves out samples of agents that were not active."""

Loss = Tensor | dict[str, Tensor]


@dataclass
class Agent(ABC):
    """An agent. `outputs` is the number of values that the model puts out for one observation."""

    outputs: int
    noise: Noise
    """The random numbers that `act` takes for each agent and step."""
    passes: int = 1
    """Permutations of the samples that are trained on in each epoch."""
    warmup: int = 0
    """Environment steps of all workers that are collected before the first update."""
    discount: float = 1.0
    """The weight of a reward one step later."""
    takes: ClassVar[tuple[str, ...]] = ()
    """The arguments of the model's forward in training, if there are others than the observation."""
    figures: Figures = field(default_factory=Figures)
    """What the agent counts for the records of training, such as the entropy."""

    @abstractmethod
    def act(self, outputs: Tensor, noise: Tensor, share: float) -> Tensor:
        """Return an action for each row of `outputs`, explored by `noise`.

        `share` is the part of the run that is over.
        """

    @abstractmethod
    def best(self, outputs: Tensor) -> Tensor:
        """Return the action that the agent holds to be best, for each row of `outputs`."""

    @abstractmethod
    def learn(self, rollout: Rollout, learner: Learner) -> Lesson:
        """Return the samples of this epoch; may be collective for the ranks that learn together."""

    @abstractmethod
    def loss(self, outputs: Any, targets: Mapping[str, Tensor]) -> Loss:
        """Return the sum of losses over the samples; a dict of parts whose sum is trained."""

    def check(self, outputs: Any) -> None:
        """Raise UserError if `outputs` are not what the agent takes from its model."""
        wanted = (1, self.outputs)
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if found != wanted:
            raise UserError(f"model: its outputs for one observation are {found}, and the agent takes {wanted}")

    def state(self) -> dict[str, Tensor]:
        """Return what this rank resumes from, besides the model."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Resume from what `state` returned."""


Predict = Callable[[Tensor], Tensor]


def following_outputs(rollout: Rollout, predict: Predict) -> Tensor:
    """Return the outputs for `rollout.following`, `(steps, rows, outputs)`.

    Where an episode goes on they are those of the next step; `predict` is asked for the others only.
    """
    found = torch.empty_like(rollout.outputs)
    found[:-1] = rollout.outputs[1:]
    asked = rollout.ended.clone()
    asked[-1] = True
    found[asked] = predict(rollout.following[asked]).to(found.dtype)
    return found

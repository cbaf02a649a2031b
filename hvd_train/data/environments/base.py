"""The contract of an environment: what an agent perceives, what it may do, and its reward.

A data source of environments returns a `Dataset` whose training samples are `Environments` and
whose held-out samples are `Episodes`. The section `agent` says what learns in them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvd_train.data.base import Dataset
from hvd_train.data.spec import DataSpec

Array = NDArray[Any]
MOST_STEPS = 10_000
"""Steps after which an episode of an environment without a time limit is cut off."""


@dataclass(frozen=True)
class Actions:
    """What an agent may do in a step: one of `choices`, or numbers from `low` to `high`."""

    choices: int = 0
    """0 for actions that are numbers."""
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def numbers(self) -> int:
        """The numbers in a continuous action; 0 for choices."""
        return len(self.low)

    def __str__(self) -> str:
        if self.choices:
            return f"one of {self.choices} choices"
        return "a number" if self.numbers == 1 else f"{self.numbers} numbers"


class Environment(Protocol):
    """One copy of an environment, with as many agents as `Environments.agents`."""

    success: bool | None
    """Whether the last step reached the goal; None if the environment does not say."""

    def reset(self, seed: int) -> Array:
        """Begin an episode and return what is perceived, float32 `(agents, *shape)`.

        The episode follows from the seed and the actions. A single agent may leave out the first
        dimension.
        """

    def step(self, actions: Array) -> tuple[Array, Any, Any, Any]:
        """Act, and return what is perceived, the reward (of each agent), and two flags.

        The first flag is True in a terminal state, the second one if a limit cut the episode off. Several
        agents may have flags of their own, bool `(agents,)`. An agent whose episode has ended before
        that of others perceives zeros, has no rewards, and does not learn until all have ended.
        """

    def render(self) -> Array:
        """Return a picture, uint8 `(height, width, 3)`."""

    def close(self) -> None:
        """Release what the environment holds."""


class Make(Protocol):
    """Makes a copy of an environment."""

    def __call__(self, number: int, *, pictures: bool = False) -> Environment:
        """Return the copy `number`; copies of equal numbers are alike. `pictures`: it can render."""


@dataclass(frozen=True)
class Environments:
    """The training samples of an agent: `copies` of an environment on each worker.

    As a `Split` it has the size of what a worker collects in an epoch, and observations of zeros:
    the real ones exist once an agent acts.
    """

    name: str
    make: Make
    observed: tuple[int, ...]
    """The shape of what one agent perceives."""
    actions: Actions
    copies: int
    """Copies of the environment on each worker."""
    steps: int
    """Steps of each copy in an epoch."""
    most_steps: int = MOST_STEPS
    """Steps after which an episode is cut off."""
    agents: int = 1
    """Agents in one copy."""
    threshold: float | None = None
    """The return from which an episode is a success; None if the environment does not say."""
    frame_rate: float = 30.0
    """Pictures in a second of an episode that is rendered: a picture is of one step."""
    cut_at: float | None = None
    """The share of done workers from which the others end an epoch's steps; None: all make all steps."""
    states: int = 0
    """The states of which an observation is one, as a one-hot vector; 0: observations are numbers."""

    @property
    def rows(self) -> int:
        """Agents that one worker steps together."""
        return self.copies * self.agents

    @property
    def labels(self) -> Tensor:
        return torch.full((len(self),), -1)

    def __len__(self) -> int:
        return self.rows * self.steps

    def batch(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros((len(indices), *self.observed)), {}


@dataclass(frozen=True)
class Episodes:
    """The held-out samples of an agent: episodes, each with a seed of its own."""

    environments: Environments
    number: int
    seed: int

    @property
    def labels(self) -> Tensor:
        return torch.full((len(self),), -1)

    def __len__(self) -> int:
        return self.number

    def batch(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.environments.batch(indices)


def as_dataset(
    environments: Environments,
    episodes: int,
    seed: int,
    warnings: tuple[str, ...] = (),
    variants_by: Literal["copy", "worker"] = "copy",
) -> Dataset:
    """Return the samples of an agent, with `episodes` for each evaluation.

    `variants_by` "worker": worker w trains in copies like number w, not in those of its own numbers.
    """
    spec = DataSpec(environments.observed, environments.actions.choices or environments.actions.numbers, "control")
    make, copies = environments.make, environments.copies
    of_worker = replace(environments, make=lambda number, *, pictures=False: make(number // copies, pictures=pictures))
    trained = of_worker if variants_by == "worker" else environments
    return Dataset(trained, Episodes(environments, episodes, seed), spec, warnings)


def finite(values: Array) -> bool:
    """Return True if no value is infinite or not a number."""
    return bool(np.isfinite(values).all())

"""What an agent remembers of earlier epochs, and the samples that it learns from again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hvd_train.agents.base import TRANSITION, Rollout

SMALLEST_PRIORITY = 1e-6
"""Is added to the error of a transition, so that none is forgotten."""


@dataclass(frozen=True)
class Transitions:
    """Up to n steps each, from an observation to the one that followed; all tensors begin with the same size."""

    observations: Tensor
    actions: Tensor
    """Those of the first step."""
    rewards: Tensor
    """The discounted sum of the rewards of the steps, float64."""
    following: Tensor
    """The observation after the last step."""
    terminated: Tensor
    """bool: it is a terminal state."""
    discounts: Tensor
    """The weight of its value, float64."""


class Memory:
    """The last steps of the agents of one rank. A position is step * rows + row, whatever the age."""

    def __init__(self, most: int) -> None:
        """All ranks together keep `most` steps."""
        self._most = most
        self._kept: dict[str, Tensor] = {}
        self._capacity = self._next = self._steps = 0

    @property
    def size(self) -> int:
        """The steps that this rank keeps, of all its agents; positions are below it."""
        return self._steps * self._rows

    @property
    def capacity(self) -> int:
        """The most steps that this rank keeps, of all its agents."""
        return self._capacity * self._rows

    def add(self, rollout: Rollout, workers: int) -> Tensor:
        """Remember the steps of `rollout` and return their positions; the oldest steps make room."""
        if not self._kept:
            self._capacity = max(1, self._most // (rollout.size[1] * workers))
        new = min(len(rollout.rewards), self._capacity)
        slots = (self._next + torch.arange(new)) % self._capacity
        for name in TRANSITION:
            values: Tensor = getattr(rollout, name)[-new:]
            if name not in self._kept:
                self._kept[name] = values.new_zeros((self._capacity, *values.shape[1:]))
            self._kept[name][slots] = values
        self._next = (self._next + new) % self._capacity
        self._steps = min(self._capacity, self._steps + new)
        return (slots.unsqueeze(1) * self._rows + torch.arange(self._rows)).flatten()

    def transitions(self, positions: Tensor, most: int, gamma: float) -> Transitions:
        """Return the transitions that begin at `positions`, of `most` steps.

        A transition is shorter where its episode ends, and where the steps after it are not
        collected yet.
        """
        slots, rows = positions // self._rows, positions % self._rows
        later = (self._next - 1 - slots) % self._capacity
        rewards, discounts = torch.zeros(len(slots), dtype=torch.float64), torch.ones(len(slots), dtype=torch.float64)
        goes_on, last = torch.ones(len(slots), dtype=torch.bool), slots
        for step in range(most):
            goes_on = goes_on & (step <= later)
            at = (slots + step) % self._capacity
            rewards += discounts * self._kept["rewards"][at, rows] * goes_on
            discounts *= torch.where(goes_on, gamma, 1.0)
            last = torch.where(goes_on, at, last)
            goes_on &= ~self._kept["ended"][at, rows]
        return Transitions(
            self._kept["observations"][slots, rows],
            self._kept["actions"][slots, rows],
            rewards,
            self._kept["following"][last, rows],
            self._kept["terminated"][last, rows],
            discounts,
        )

    def state(self) -> dict[str, Tensor]:
        """Return what `load` resumes from."""
        if not self._kept:
            return {}
        place = torch.tensor([self._capacity, self._next, self._steps])
        return {"place": place, **{name: values[: self._steps] for name, values in self._kept.items()}}

    def load(self, state: dict[str, Tensor]) -> None:
        if not state:
            return
        self._capacity, self._next, self._steps = state["place"].tolist()
        for name in TRANSITION:
            self._kept[name] = state[name].new_zeros((self._capacity, *state[name].shape[1:]))
            self._kept[name][: self._steps] = state[name]

    @property
    def _rows(self) -> int:
        return self._kept["rewards"].shape[1] if self._kept else 0


class Sampling(Protocol):
    """Chooses positions of a `Memory`."""

    def add(self, positions: Tensor, capacity: int) -> None:
        """Take note of new steps at `positions`, in a memory of `capacity` steps."""

    def draw(
        self, batches: int, size: int, filled: int, share: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return `batches` times `size` positions below `filled`, and the weight of each sample, float64.

        The part `share` of the run is over.
        """

    def update(self, positions: Tensor, errors: Tensor) -> None:
        """Take note of the temporal-difference errors of samples."""

    def state(self) -> dict[str, Tensor]:
        """Return what `load` resumes from."""

    def load(self, state: dict[str, Tensor]) -> None:
        """Resume from what `state` returned."""


class Uniform:
    """All steps are equally likely."""

    def add(self, positions: Tensor, capacity: int) -> None:
        pass

    def draw(
        self, batches: int, size: int, filled: int, share: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        positions = torch.randint(filled, (batches * size,), generator=generator)
        return positions, torch.ones(len(positions), dtype=torch.float64)

    def update(self, positions: Tensor, errors: Tensor) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        pass


class Prioritised:
    """Proportional prioritised replay (Schaul et al. 2016).

    The probability of a step is proportional to its last error to the power of `power`. New steps
    have the largest priority so far. Samples are weighted by their probability to the power of
    -`correction`, which rises to 1 in the run, relative to the largest weight in the memory.
    """

    def __init__(self, power: float, correction: float) -> None:
        self._power, self._correction = power, correction
        self._priorities = torch.zeros(0, dtype=torch.float64)
        """Priorities to the power of `power`; 0 where no step is."""
        self._largest = torch.ones((), dtype=torch.float64)

    def add(self, positions: Tensor, capacity: int) -> None:
        if not len(self._priorities):
            self._priorities = torch.zeros(capacity, dtype=torch.float64)
        self._priorities[positions] = self._largest

    def draw(
        self, batches: int, size: int, filled: int, share: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Each sample of a batch is drawn from its own of `size` equal parts of the priorities."""
        priorities = self._priorities[:filled]
        sums = priorities.cumsum(0)
        drawn = torch.rand(batches, size, dtype=torch.float64, generator=generator)
        points = (torch.arange(size) + drawn) / size * sums[-1]
        positions = torch.searchsorted(sums, points.flatten(), right=True).clamp_(max=filled - 1)
        correction = self._correction + (1 - self._correction) * share
        return positions, (priorities.min() / priorities[positions]) ** correction

    def update(self, positions: Tensor, errors: Tensor) -> None:
        found = (errors.abs().double() + SMALLEST_PRIORITY) ** self._power
        self._priorities[positions] = found
        self._largest = torch.maximum(self._largest, found.max())

    def state(self) -> dict[str, Tensor]:
        return {"priorities": self._priorities, "largest": self._largest}

    def load(self, state: dict[str, Tensor]) -> None:
        self._priorities, self._largest = state["priorities"].clone(), state["largest"].clone()

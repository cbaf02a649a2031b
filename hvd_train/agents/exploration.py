"""How agents with action values try other actions than the best one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from hvd_train.agents.noise import Noise


@dataclass(frozen=True)
class Linear:
    """A number that moves from `first` to `last` in the first `part` of the run, and stays there."""

    first: float
    last: float
    part: float

    def at(self, share: float) -> float:
        """Return the number when the part `share` of the run is over."""
        done = min(1.0, share / self.part) if self.part else 1.0
        return self.first * (1 - done) + self.last * done


class Exploration(Protocol):
    """Chooses actions by their values `(..., choices)`."""

    noise: Noise
    """What `choose` takes for each row of values."""

    def choose(self, values: Tensor, noise: Tensor, share: float) -> Tensor:
        """Return an action for each row when the part `share` of the run is over, int64."""

    def probabilities(self, values: Tensor, share: float) -> Tensor:
        """Return the probability with which `choose` returns each action."""


class EpsilonGreedy:
    """A random action with probability `epsilon`, otherwise the best one.

    One of several equal values is chosen at random: the first entries of a table are all equal, and
    their first action explores nothing.
    """

    def __init__(self, choices: int, epsilon: Linear) -> None:
        self.noise = Noise("uniform", 1 + choices)
        self._choices, self._epsilon = choices, epsilon

    def choose(self, values: Tensor, noise: Tensor, share: float) -> Tensor:
        explores, order = noise[..., :1] < self._epsilon.at(share), noise[..., 1:]
        is_candidate = explores | _is_best(values)
        return torch.where(is_candidate, order, -1.0).argmax(-1)

    def probabilities(self, values: Tensor, share: float) -> Tensor:
        best, epsilon = _is_best(values).to(values.dtype), self._epsilon.at(share)
        return epsilon / self._choices + (1 - epsilon) * best / best.sum(-1, keepdim=True)


class Boltzmann:
    """Each action with a probability proportional to exp(value / temperature)."""

    def __init__(self, choices: int, temperature: Linear) -> None:
        self.noise = Noise("gumbel", choices)
        self._temperature = temperature

    def choose(self, values: Tensor, noise: Tensor, share: float) -> Tensor:
        return (values + self._at(share) * noise).argmax(-1)

    def probabilities(self, values: Tensor, share: float) -> Tensor:
        return (values / self._at(share)).softmax(-1)

    def _at(self, share: float) -> float:
        """Return the temperature; at 0 chance still chooses among equal values."""
        return max(self._temperature.at(share), 1e-8)


Kind = Literal["epsilon_greedy", "boltzmann"]


def exploration_for(kind: Kind, choices: int, schedule: Linear) -> Exploration:
    """Return the exploration `kind`, whose epsilon or temperature follows `schedule`."""
    return EpsilonGreedy(choices, schedule) if kind == "epsilon_greedy" else Boltzmann(choices, schedule)


def _is_best(values: Tensor) -> Tensor:
    """Return True for the values that equal the largest one but for rounding, which differs between numbers of ranks."""
    rounding: float = torch.finfo(values.dtype).eps ** 0.75
    return values >= values.amax(-1, keepdim=True) - rounding * values.abs().amax(-1, keepdim=True)

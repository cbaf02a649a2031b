"""Distributions of actions that the outputs of a model describe."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from hvd_train.agents.noise import Noise
from hvd_train.data.environments.base import Actions


class Policy(Protocol):
    """A distribution of actions for each row of `outputs` `(..., size)`."""

    size: int
    """The outputs that describe the distribution."""
    noise: Noise
    """What `sample` takes."""

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return one action for each row."""

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most likely action for each row."""

    def log_probability(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the logarithm of the probability (density) of each action."""

    def assess(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `log_probability` does, and the entropy of each row in nats."""


class Categorical:
    """One of `choices`; outputs are unnormalised logarithms of probabilities."""

    def __init__(self, choices: int) -> None:
        self.size = choices
        self.noise = Noise("gumbel", choices)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        return (outputs + noise).argmax(-1)

    def mode(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)

    def log_probability(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return self.assess(outputs, actions)[0]

    def assess(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        logarithms = outputs.log_softmax(-1)
        taken = logarithms.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        return taken, -(logarithms.exp() * logarithms).sum(-1)


class Gaussian:
    """Numbers around a mean; outputs are the means and the logarithms of the standard deviations.

    Means and deviations are in units of half the range of an action.
    """

    def __init__(self, actions: Actions) -> None:
        low, high = torch.tensor(actions.low), torch.tensor(actions.high)
        self.size = 2 * actions.numbers
        self.noise = Noise("normal", actions.numbers)
        self._middle, self._half = (low + high) / 2, (high - low) / 2

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        mean, deviation = self._parts(outputs)
        return self._middle + self._half * (mean + deviation.exp() * noise.to(mean.dtype))

    def mode(self, outputs: Tensor) -> Tensor:
        return self._middle + self._half * self._parts(outputs)[0]

    def log_probability(self, outputs: Tensor, actions: Tensor) -> Tensor:
        return self.assess(outputs, actions)[0]

    def assess(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = self._parts(outputs)
        middle, half = self._middle.to(outputs.device), self._half.to(outputs.device)
        distance = ((actions - middle) / half - mean) / deviation.exp()
        taken = -distance.square() / 2 - deviation - math.log(2 * math.pi) / 2
        return taken.sum(-1), (deviation + math.log(2 * math.pi * math.e) / 2).sum(-1)

    def _parts(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = outputs.chunk(2, dim=-1)
        return mean, deviation.clamp(-5, 2)


def policy_for(actions: Actions) -> Policy:
    """Return the distribution that fits `actions`."""
    return Categorical(actions.choices) if actions.choices else Gaussian(actions)

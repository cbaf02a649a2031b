"""Which clients take part in a federated round, and what their updates become."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvd_train.comm.base import Communicator
from hvd_train.privacy.gaussian import gaussian
from hvd_train.sync._aggregate import AGGREGATORS

Merge = Callable[[Tensor, int, Sequence[int]], Tensor]
"""(this client's update [d], its samples, the round's clients) -> what is added to the model, bitwise equal on every rank.

Collective; a client without samples has no part in the result, nor has one whose update is not finite.
"""

Sum = Callable[[Tensor, bool, Sequence[int]], Tensor]
"""(vector, whether it counts, the round's clients) -> the sum of those that count; collective."""


@dataclass(frozen=True)
class Sample:
    """The clients of each round: `fraction` of them, at least one; or each with probability `fraction` (`poisson`).

    They follow from `seed` and the round alone.
    """

    clients: int
    fraction: float
    seed: int
    poisson: bool = False

    @property
    def size(self) -> int:
        """Clients in a round, or the nearest to what is expected."""
        return max(1, round(self.fraction * self.clients))

    def of(self, number: int) -> list[int]:
        generator = np.random.default_rng([self.seed, number])
        if self.poisson:
            return [int(i) for i in np.flatnonzero(generator.random(self.clients) < self.fraction)]
        return sorted(int(i) for i in generator.permutation(self.clients)[: self.size])


class PlainSum:
    """Adds up what every rank may see."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm

    def __call__(self, vector: Tensor, counts: bool, clients: Sequence[int]) -> Tensor:
        total = vector.clone() if counts else torch.zeros_like(vector)
        self._comm.all_reduce_(total, "sum")
        return total


class WeightedMean:
    """sum (n_k / n) u_k over the round's clients (FedAvg, arXiv 1602.05629); n_k travels as one more coordinate."""

    def __init__(self, add: Sum) -> None:
        self._add = add

    def __call__(self, update: Tensor, samples: int, clients: Sequence[int]) -> Tensor:
        vector = torch.cat([update * samples, update.new_tensor([samples])])
        total = self._add(vector, usable(update, samples), clients)
        return total[:-1] / total[-1].clamp(min=1)


class PrivateMean:
    """(sum u_k + N(0, deviation^2)) / expected: clients count alike, and by how many is divided depends on none of them.

    The estimator with a fixed denominator of arXiv 1710.06963. Each of `ranks` adds its part of the noise, whether it is in the
    round or not, before anything leaves it.
    """

    def __init__(self, add: Sum, ranks: int, deviation: float, expected: float) -> None:
        self._add, self._ranks, self._expected = add, ranks, expected
        self._deviation = deviation / math.sqrt(ranks)

    def __call__(self, update: Tensor, samples: int, clients: Sequence[int]) -> Tensor:
        part = update if usable(update, samples) else torch.zeros_like(update)
        noise = gaussian(part.numel(), self._deviation).to(part.device)
        # Added in float64 and rounded after: noise that was rounded first would leave digits of the part as they are.
        return self._add((part.double() + noise).to(part.dtype), True, range(self._ranks)) / self._expected


class Robust:
    """What an aggregator that sees every single update makes of them, whatever their samples."""

    def __init__(self, comm: Communicator, name: str, byzantine: int) -> None:
        self._comm, self._aggregate, self._byzantine = comm, AGGREGATORS[name], byzantine

    def __call__(self, update: Tensor, samples: int, clients: Sequence[int]) -> Tensor:
        stack = torch.cat(self._comm.all_gather(update[None] if samples else update[None][:0]))
        return self._aggregate(stack, self._byzantine)


def usable(update: Tensor, samples: int) -> bool:
    return samples > 0 and bool(update.isfinite().all())

"""How the updates of a round's clients become one change of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.sync.clients.gaussian import gaussian
from hvd_train.sync.servers.aggregate import AGGREGATORS

Merge = Callable[[Tensor, float, Sequence[int]], Tensor]
"""(this client's update [d], its samples, the round's clients) -> the change of the model [d].

Collective. The change is bitwise equal on every rank. A client without samples does not count, nor
does a client whose update is not finite.
"""

Sum = Callable[[Tensor, bool, Sequence[int]], Tensor]
"""(vector, whether it counts, the round's clients) -> the sum of the vectors that count.

Collective.
"""


class PlainSum:
    """Sums vectors that every rank may see."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm

    def __call__(self, vector: Tensor, counts: bool, clients: Sequence[int]) -> Tensor:
        total = vector.clone() if counts else torch.zeros_like(vector)
        self._comm.all_reduce_(total, "sum")
        return total


class WeightedMean:
    """sum (n_k / n) u_k over the clients of the round (FedAvg, arXiv 1602.05629).

    n_k is sent as one more coordinate.
    """

    def __init__(self, add: Sum) -> None:
        self._add = add

    def __call__(self, update: Tensor, samples: float, clients: Sequence[int]) -> Tensor:
        vector = torch.cat([update * samples, update.new_tensor([samples])])
        total = self._add(vector, usable(update, samples), clients)
        return total[:-1] / total[-1].clamp(min=1)


class PrivateMean:
    """(sum u_k + N(0, deviation^2)) / expected.

    The estimator with a fixed denominator of arXiv 1710.06963. Clients count the same, and the
    denominator depends on no client. Each of `ranks` adds its part of the noise before anything
    leaves the rank, whether the rank is in the round or not.
    """

    def __init__(self, add: Sum, ranks: int, deviation: float, expected: float) -> None:
        self._add, self._ranks, self._expected = add, ranks, expected
        self._deviation = deviation / math.sqrt(ranks)

    def __call__(self, update: Tensor, samples: float, clients: Sequence[int]) -> Tensor:
        part = update if usable(update, samples) else torch.zeros_like(update)
        noise = gaussian(part.numel(), self._deviation).to(part.device)
        # The sum in float64 is rounded once: noise that is rounded first would leave digits of the
        # part unchanged.
        return self._add((part.double() + noise).to(part.dtype), True, range(self._ranks)) / self._expected


class RobustMerge:
    """The aggregator `name` of the single updates, whatever the number of their samples."""

    def __init__(self, comm: Communicator, name: str, byzantine: int) -> None:
        self._comm, self._aggregate, self._byzantine = comm, AGGREGATORS[name], byzantine

    def __call__(self, update: Tensor, samples: float, clients: Sequence[int]) -> Tensor:
        stack = torch.cat(self._comm.all_gather(update[None] if samples else update[None][:0]))
        return self._aggregate(stack, self._byzantine)


def usable(update: Tensor, samples: float) -> bool:
    return samples > 0 and bool(update.isfinite().all())

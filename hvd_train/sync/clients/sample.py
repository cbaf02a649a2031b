"""The clients of a federated round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hvd_train.comm.communicator import Communicator
from hvd_train.sync.membership import Membership, Share, every

STOP_EVERY = 16
"""Steps between two agreements on stopping: a round may be long."""


@dataclass(frozen=True)
class Sample:
    """Samples the clients of each round from `seed` and the number of the round.

    A round has `fraction` of the clients, at least one. With `poisson`, each client is in a round
    with probability `fraction`, independently of the others.
    """

    clients: int
    fraction: float
    seed: int
    poisson: bool = False

    @property
    def size(self) -> int:
        """The number of clients in a round; with `poisson` about the expected number."""
        return max(1, round(self.fraction * self.clients))

    def of(self, number: int) -> list[int]:
        """Return the clients of round `number`, in ascending order."""
        generator = np.random.default_rng([self.seed, number])
        if self.poisson:
            return [int(i) for i in np.flatnonzero(generator.random(self.clients) < self.fraction)]
        return sorted(int(i) for i in generator.permutation(self.clients)[: self.size])

    def __str__(self) -> str:
        if self.poisson:
            return f"{self.clients} clients, each of them in a round with probability {self.fraction:g}"
        return f"{self.clients} clients, {self.size} of them in a round"


class SampledClients(Membership):
    """All ranks take their steps together. Only the clients of a round have samples.

    A round has `local_epochs` epochs.
    """

    def __init__(self, comm: Communicator, sample: Sample, local_epochs: int, at_end: Callable[[], None]) -> None:
        super().__init__(comm, every(STOP_EVERY), at_end)
        self.sample, self._local_epochs = sample, local_epochs

    def clients(self, epoch: int) -> list[int]:
        """Return the clients of the round that `epoch` belongs to."""
        return self.sample.of(epoch // self._local_epochs)

    def share(self, epoch: int) -> Share | None:
        """In a round without clients, rank 0 takes steps that do not count: an epoch needs some."""
        return Share(self.comm.rank, self.comm.size) if self.comm.rank in (self.clients(epoch) or [0]) else None

    @property
    def workers(self) -> int:
        return self.comm.size

    def roles(self) -> str:
        return str(self.sample)

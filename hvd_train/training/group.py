"""Which ranks a rank acts with, by purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json


@dataclass(frozen=True)
class Group:
    """The ranks that one rank acts with."""

    trains_with: Communicator
    """All ranks of the run."""

    steps_with: Communicator
    """The ranks that take their steps together. They agree on metrics, stopping and checkpoints.

    This rank alone if the strategy is asynchronous.
    """

    evaluates_with: Communicator
    """The ranks that divide the held-out samples among them: one for each copy of the model."""

    observes: bool
    """True if this rank evaluates, records metrics and saves checkpoints."""

    gather: Callable[[Any], list[Any]]
    """Returns the values of all ranks in rank order, on rank 0 at least.

    Between `finish` and `leave` of the strategy.
    """

    @property
    def in_step(self) -> bool:
        """True if all ranks of the run take their steps together."""
        return self.steps_with.size == self.trains_with.size

    @property
    def is_first(self) -> bool:
        """True on rank 0 of the run."""
        return self.trains_with.rank == 0


def synchronous(comm: Communicator) -> Group:
    """Return the group in which all ranks of `comm` do everything together."""
    return Group(comm, comm, comm, observes=True, gather=partial(gather_json, comm))

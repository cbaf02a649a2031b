"""Who takes part in a run, and which ranks wait for which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json


class Share(NamedTuple):
    """The part of the samples that a rank trains on: part number `worker` of `workers`."""

    worker: int
    workers: int


def every_step(step: int) -> bool:
    return True


def every(period: int) -> Callable[[int], bool]:
    """Return a function that returns True for the last of each `period` steps."""
    return lambda step: (step + 1) % period == 0


def nothing() -> None:
    """Do nothing."""


def ranks_in_words(ranks: range) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]}-{ranks[-1]}"


class Membership:
    """A synchronous group: all ranks of `comm` are workers and take their steps together."""

    def __init__(
        self,
        comm: Communicator,
        synchronises_at: Callable[[int], bool] = every_step,
        at_end: Callable[[], None] = nothing,
    ) -> None:
        """`leave` runs `at_end`, which may be collective."""
        self.comm, self._synchronises_at, self._at_end = comm, synchronises_at, at_end
        self.lost: list[int] = []
        """The ranks that died while the others continued."""

    @property
    def world(self) -> Communicator:
        """The ranks that agree on lengths, metrics, stopping and checkpoints."""
        return self.comm

    @property
    def stopped(self) -> bool:
        """True if another rank, which this rank does not wait for, received a signal to stop."""
        return False

    def share(self, epoch: int) -> Share | None:
        """Return this rank's part of the samples in `epoch`.

        None if it has no samples, for instance as a server.
        """
        return Share(self.comm.rank, self.comm.size)

    @property
    def workers(self) -> int:
        """The number by which `schedule.scale_by_world_size` multiplies the learning rate."""
        share = self.share(0)
        return share.workers if share else 1

    def roles(self) -> str:
        """Describe which ranks do what, for the first line that a run prints."""
        return f"{self.comm.size} rank{'s' * (self.comm.size > 1)}"

    def synchronises_at(self, step: int) -> bool:
        """Return True if all ranks wait for one another in `step`, and may agree on stopping."""
        return self._synchronises_at(step)

    def serve(self) -> bool:
        """Serve until all workers have left, if this rank is a dedicated server.

        Called after `start`. Return True if the rank has served and takes no step.
        """
        return False

    def end(self, reason: str) -> None:
        """End the run on all ranks before its length.

        Called before `finish`, on the only rank that evaluates.
        """

    def ended(self) -> str | None:
        """Return the reason if a rank that this rank does not wait for has ended the run."""
        return None

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every rank, in rank order, on rank 0 at least.

        Called between `finish` and `leave`.
        """
        return gather_json(self.comm, value)

    def leave(self) -> None:
        """Leave the group: the last call, after the final checkpoint."""
        self._at_end()

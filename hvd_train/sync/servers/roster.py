"""The states of ranks that do not wait for one another: working, finished, left or dead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hvd_train.comm.messages import LOST, Message
from hvd_train.errors import ExitCode

FINISHED, LEFT, ENDED, VALUE = "finished", "left", "ended", "value"


class RankLost(Exception):
    """A rank died that no other rank can replace."""

    exit_code = ExitCode.FAILURE

    def __init__(self, rank: int, host: str, role: str) -> None:
        super().__init__(f"rank {rank} on {host} is gone, which {role}: the run cannot continue without it")
        self.lost = rank


class Roster:
    """One rank's record of all ranks on the `hosts`, kept up to date by `update`.

    `vital` maps the ranks that the run cannot continue without to what each of them does, as a
    clause.
    """

    def __init__(self, hosts: Sequence[str], workers: Sequence[int], vital: Mapping[int, str]) -> None:
        self.hosts, self.workers, self._vital = hosts, list(workers), vital
        self.lost: list[int] = []
        self.finished: set[int] = set()
        self.left: set[int] = set()
        self.agreed_lost: list[int] = []
        """The lost ranks that rank 0 knew of when it left: equal on every rank that waits for rank
        0 to leave."""
        self.reason: str | None = None
        """The reason why the run ends before its length."""
        self.stopped = False
        """True if a rank has left without having finished, as it does after a signal."""
        self.values: dict[int, Any] = {}
        """The values that ranks have sent to be gathered."""

    @property
    def living(self) -> list[int]:
        """The workers that have not died."""
        return [rank for rank in self.workers if rank not in self.lost]

    @property
    def present(self) -> list[int]:
        """The workers that may still send requests."""
        return [rank for rank in self.living if rank not in self.left]

    @property
    def working(self) -> list[int]:
        """The workers that still have steps to take."""
        return [rank for rank in self.present if rank not in self.finished]

    def update(self, message: Message) -> bool:
        """Record `message`; return False if it is not about the state of a rank.

        RankLost if a vital rank died.
        """
        rank, values = message.source, message.values
        if message.kind == LOST:
            self._lose(rank)
        elif message.kind == FINISHED:
            self.finished.add(rank)
        elif message.kind == LEFT:
            self._leave(rank, values["lost"])
        elif message.kind == ENDED:
            self.reason = values["reason"]
        elif message.kind == VALUE:
            self.values[rank] = values["value"]
        else:
            return False
        return True

    def _lose(self, rank: int) -> None:
        if rank in self.left:
            return
        if rank in self._vital:
            raise RankLost(rank, self.hosts[rank], self._vital[rank])
        if rank not in self.lost:
            self.lost.append(rank)

    def _leave(self, rank: int, lost: list[int]) -> None:
        self.left.add(rank)
        self.stopped |= rank not in self.finished
        if rank == 0:
            self.agreed_lost = lost

"""What ranks that do not wait for one another know of each other: who works, has finished, has left, is dead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hvd_train.comm._mailbox import LOST, Message
from hvd_train.errors import ExitCode

FINISHED, LEFT, ENDED, VALUE = "finished", "left", "ended", "value"


class RankLost(Exception):
    """A rank died that no other can stand in for."""

    exit_code = ExitCode.FAILURE

    def __init__(self, rank: int, host: str, role: str) -> None:
        super().__init__(f"rank {rank} on {host} is gone, which {role}: the run cannot go on without it")
        self.lost = rank


class Members:
    """One rank's book of all ranks, on the `hosts`, kept by what `hear` is given.

    `vital` are the ranks that the run cannot go on without, and what each of them does, as a clause.
    """

    def __init__(self, hosts: Sequence[str], workers: Sequence[int], vital: Mapping[int, str]) -> None:
        self.hosts, self.workers, self._vital = hosts, list(workers), vital
        self.lost: list[int] = []
        self.finished: set[int] = set()
        self.left: set[int] = set()
        self.agreed_lost: list[int] = []
        """What rank 0 knew of the dead when it left: the same on every rank that waits for that."""
        self.reason: str | None = None
        """Why the run is over before its length."""
        self.stopped = False
        """Whether a rank has left without having finished, as it does after a signal."""
        self.values: dict[int, Any] = {}

    @property
    def living(self) -> list[int]:
        """Workers that are not dead."""
        return [rank for rank in self.workers if rank not in self.lost]

    @property
    def present(self) -> list[int]:
        """Workers that may still ask for something."""
        return [rank for rank in self.living if rank not in self.left]

    @property
    def working(self) -> list[int]:
        """Workers that have steps to take."""
        return [rank for rank in self.present if rank not in self.finished]

    def hear(self, message: Message) -> bool:
        """Whether `message` was about members, and is dealt with; RankLost where a vital rank died."""
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

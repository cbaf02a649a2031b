"""Loads data together with the other ranks of this host, without a rank that waits for a failed one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from hvd_train.comm.agree import here
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.data.memory.node import Node
from hvd_train.errors import UserError

T = TypeVar("T")
Kind = Literal["value", "error", "end"]


def on_node(comm: Communicator, task: Callable[[Node], T]) -> T:
    """Run `task` on every rank and return its result; collective.

    Ranks of a host call `gather` of the node equally often; ranks of other hosts may differ. If
    `task` raises UserError on some rank, raise UserError on all ranks with the message, rank and
    host of the first: at once, or where they gather next.
    """
    node = RanksOfHost(comm)
    try:
        result = task(node)
    except UserError as error:
        node.fail(f"{error}{here(comm)}")
        raise
    node.end()
    return result


class RanksOfHost:
    """The `Node` of a communicator.

    Every call gathers over all ranks. A rank that has ended or failed says so in the place of a
    value, so that all ranks take part in the same gathers.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm, self._failed = comm, False
        hosts = gather_json(comm, _host())
        self._ranks = [rank for rank, host in enumerate(hosts) if host == hosts[comm.rank]]
        self.rank, self.size = self._ranks.index(comm.rank), len(self._ranks)

    def gather(self, value: Any) -> list[Any]:
        said = self._gather("value", value)
        if any(said[rank][0] == "end" for rank in self._ranks):
            raise UserError("data: a file changed while the ranks of this host opened it; start again")
        return [said[rank][1] for rank in self._ranks]

    def fail(self, problem: str) -> None:
        """Raise the UserError of the first rank that failed, on this rank and on all others."""
        if not self._failed:
            self._gather("error", problem)

    def end(self) -> None:
        """Return once all ranks have called it; raise the UserError of the first rank that failed."""
        while any(kind != "end" for kind, _ in self._gather("end", None)):
            pass

    def _gather(self, kind: Kind, value: Any) -> list[tuple[Kind, Any]]:
        said = gather_json(self._comm, [kind, value])
        problem = next((text for kind, text in said if kind == "error"), None)
        if problem is not None:
            self._failed = True
            raise UserError(problem)
        return [(kind, value) for kind, value in said]


def _host() -> list[Any]:
    """Return what is equal for processes of one host that see each other in /proc."""
    return [socket.gethostname(), os.stat("/proc/self/ns/pid").st_ino]

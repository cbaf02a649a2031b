"""Stale synchronous parallel: as async_ps, but no worker is more than `staleness` steps ahead of the slowest."""

from __future__ import annotations

from typing import Any

from hvd_train.options import Annotated, Literal, NonNegativeInt, PositiveInt
from hvd_train.sync._served import Served
from hvd_train.sync._server import Push, Server
from hvd_train.sync._servers import Placement
from hvd_train.sync.base import Context

ASYNCHRONOUS = True


class Bounded(Server):
    """A worker's clock counts its pushes; it is answered once its clock is at most `staleness` ahead of any that still works."""

    def __init__(self, *arguments: Any, staleness: int) -> None:
        super().__init__(*arguments)
        self._staleness = staleness
        self._clocks = dict.fromkeys(self.members.workers, 0)
        self._waiting: list[int] = []
        self._gap = 0
        """The largest with which a worker was let go."""

    def push(self, push: Push) -> None:
        self.apply([push], push.rate)
        self._clocks[push.worker] += 1
        self._waiting.append(push.worker)

    def settle(self) -> None:
        working = self.members.working
        slowest = min((self._clocks[w] for w in working), default=0)
        self._waiting = [w for w in self._waiting if w in working]
        for worker in [w for w in self._waiting if self._clocks[w] - slowest <= self._staleness]:
            self._gap = max(self._gap, self._clocks[worker] - slowest)
            self._waiting.remove(worker)
            self.answer(worker)

    def report(self) -> dict[str, Any]:
        return {**super().report(), "gap": self._gap}


class SSP(Served):
    """Bounded staleness (Ho et al., NIPS'13): 0 is synchronous; what is in the parameters is at most that many steps old."""

    def __init__(self, context: Context, servers: int, placement: Placement, staleness: int) -> None:
        super().__init__(context, servers, placement)
        self._staleness = staleness

    def make(self, *arguments: Any) -> Server:
        return Bounded(*arguments, staleness=self._staleness)

    def summary(self) -> dict[str, Any]:
        return {**super().summary(), "largest_gap": max((report["gap"] for report in self.reports), default=0)}


def create(
    context: Context,
    *,
    staleness: Annotated[NonNegativeInt, "steps that a worker may be ahead of the slowest; 0 is synchronous"] = 3,
    servers: Annotated[PositiveInt, "ranks that hold parameters, each a part of them"] = 1,
    placement: Annotated[
        Literal["colocated", "dedicated"],
        "servers are threads of the first ranks, or the last ranks and do no other work",
    ] = "colocated",
) -> SSP:
    return SSP(context, servers, placement, staleness)

"""As async_ps, with bounded staleness: no worker is far ahead of the slowest."""

from __future__ import annotations

from functools import partial
from typing import Any

from hvd_train.config.options import Annotated, Literal, NonNegativeInt, PositiveInt
from hvd_train.sync.base import Context
from hvd_train.sync.servers.client import Reports, ServedWorkers
from hvd_train.sync.servers.server import Push, Server

ASYNCHRONOUS = True


class BoundedStaleness(Server):
    """Applies each gradient, and answers once its worker is at most `staleness` steps ahead.

    SSP, Ho et al., NIPS'13. A worker's clock counts its pushes and is compared with the clocks of
    all workers that still work. With a staleness of 0 training is synchronous.
    """

    def __init__(self, *arguments: Any, staleness: int) -> None:
        super().__init__(*arguments)
        self._staleness = staleness
        self._clocks = dict.fromkeys(self.roster.workers, 0)
        self._waiting: list[int] = []
        self._largest_gap = 0
        """The largest number of steps by which an answered worker was ahead."""

    def push(self, push: Push) -> None:
        self.apply([push], push.rate)
        self._clocks[push.worker] += 1
        self._waiting.append(push.worker)

    def settle(self) -> None:
        working = self.roster.working
        slowest = min((self._clocks[w] for w in working), default=0)
        self._waiting = [w for w in self._waiting if w in working]
        for worker in [w for w in self._waiting if self._clocks[w] - slowest <= self._staleness]:
            self._largest_gap = max(self._largest_gap, self._clocks[worker] - slowest)
            self._waiting.remove(worker)
            self.answer(worker)

    def report(self) -> dict[str, Any]:
        return {**super().report(), "gap": self._largest_gap}


def largest_gap(reports: Reports) -> dict[str, Any]:
    return {"largest_gap": max((report["gap"] for report in reports), default=0)}


def create(
    context: Context,
    *,
    staleness: Annotated[NonNegativeInt, "steps that a worker may be ahead of the slowest; 0 is synchronous"] = 3,
    servers: Annotated[PositiveInt, "ranks that hold parameters, each a part of them"] = 1,
    placement: Annotated[
        Literal["colocated", "dedicated"],
        "servers are threads of the first ranks, or the last ranks, which do no other work",
    ] = "colocated",
) -> ServedWorkers:
    return ServedWorkers(context, servers, placement, partial(BoundedStaleness, staleness=staleness), largest_gap)

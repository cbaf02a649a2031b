"""Parameter servers apply each gradient when it arrives.

A worker waits only for the answer to its own gradient.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from hvd_train.config.options import Annotated, Literal, NonNegativeFloat, PositiveInt
from hvd_train.sync.base import Context
from hvd_train.sync.servers.client import ServedWorkers
from hvd_train.sync.servers.server import Push, Server

ASYNCHRONOUS = True


class OnArrival(Server):
    """w <- w - lr * g_i whenever a g_i arrives.

    DistBelief, Dean et al., NIPS'12; Hogwild, Recht et al., NIPS'11. With `window` > 0, applies the
    sum of the gradients that arrive within `window` seconds of the first, or at once when no other
    worker can send one. With `damping`, divides the learning rate by 1 + staleness (Zhang et al.,
    arXiv 1511.05950), in a window by the mean of these rates.
    """

    def __init__(self, *arguments: Any, window: float, damping: bool) -> None:
        super().__init__(*arguments)
        self._window, self._damping = window, damping
        self._arrived: list[Push] = []
        self._due = 0.0

    def push(self, push: Push) -> None:
        if not self._arrived:
            self._due = time.monotonic() + self._window
        self._arrived.append(push)

    def timeout(self) -> float | None:
        return max(0.0, self._due - time.monotonic()) if self._arrived else None

    def settle(self) -> None:
        from_all = len(self._arrived) >= len(self.roster.working)
        if self._arrived and (from_all or time.monotonic() >= self._due):
            arrived, self._arrived = self._arrived, []
            self.apply(arrived, sum(map(self._rate, arrived)) / len(arrived))
            for push in arrived:
                self.answer(push.worker)

    def _rate(self, push: Push) -> float:
        return push.rate / (1 + self.version - push.version) if self._damping else push.rate


def create(
    context: Context,
    *,
    servers: Annotated[PositiveInt, "ranks that hold parameters, each a part of them"] = 1,
    placement: Annotated[
        Literal["colocated", "dedicated"],
        "servers are threads of the first ranks, or the last ranks, which do no other work",
    ] = "colocated",
    window_ms: Annotated[
        NonNegativeFloat, "milliseconds that a server collects gradients before it applies their sum"
    ] = 0.0,
    damping: Annotated[bool, "divide the learning rate of a gradient by 1 + its staleness"] = False,
) -> ServedWorkers:
    return ServedWorkers(context, servers, placement, partial(OnArrival, window=window_ms / 1000, damping=damping))

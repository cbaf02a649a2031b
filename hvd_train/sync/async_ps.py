"""Parameter servers apply each gradient when it arrives; a worker waits for its own answer only."""

from __future__ import annotations

import time
from typing import Any

from hvd_train.options import Annotated, Literal, NonNegativeFloat, PositiveInt
from hvd_train.sync._served import Served
from hvd_train.sync._server import Push, Server
from hvd_train.sync._servers import Placement
from hvd_train.sync.base import Context

ASYNCHRONOUS = True


class OnArrival(Server):
    """Applies at once, or `window` seconds after the first what came by then, or as soon as nobody else can come.

    With `damping`, the learning rate is divided by 1 + tau, of a window by the mean of that, where tau counts the gradients that
    others have put into the parameters since the worker got them (Zhang et al., arXiv 1511.05950).
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

    def patience(self) -> float | None:
        return max(0.0, self._due - time.monotonic()) if self._arrived else None

    def settle(self) -> None:
        everybody = len(self._arrived) >= len(self.members.working)
        if self._arrived and (everybody or time.monotonic() >= self._due):
            arrived, self._arrived = self._arrived, []
            self.apply(arrived, sum(map(self._rate, arrived)) / len(arrived))
            for push in arrived:
                self.answer(push.worker)

    def _rate(self, push: Push) -> float:
        return push.rate / (1 + self.version - push.version) if self._damping else push.rate


class AsyncPS(Served):
    """w <- w - lr * g_i whenever a g_i comes (DistBelief, Dean et al., NIPS'12; Hogwild, Recht et al., NIPS'11)."""

    def __init__(self, context: Context, servers: int, placement: Placement, window: float, damping: bool) -> None:
        super().__init__(context, servers, placement)
        self._window, self._damping = window, damping

    def make(self, *arguments: Any) -> Server:
        return OnArrival(*arguments, window=self._window, damping=self._damping)


def create(
    context: Context,
    *,
    servers: Annotated[PositiveInt, "ranks that hold parameters, each a part of them"] = 1,
    placement: Annotated[
        Literal["colocated", "dedicated"],
        "servers are threads of the first ranks, or the last ranks and do no other work",
    ] = "colocated",
    window_ms: Annotated[
        NonNegativeFloat, "milliseconds that a server collects gradients before it applies their sum"
    ] = 0.0,
    damping: Annotated[bool, "divide the learning rate of a gradient by 1 + its staleness"] = False,
) -> AsyncPS:
    return AsyncPS(context, servers, placement, window_ms / 1000, damping)

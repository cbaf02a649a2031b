"""The clock of a rank that is slowed down on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hvd_train.comm.wrappers.emulated import Pace
from hvd_train.compute.activity import Activity
from hvd_train.compute.clock import Clock


class SlowClock(Clock):
    """Sleeps within computing phases as `pace` demands, so that the rank measures its slower speed.

    It sleeps after backward and after the optimizer only. Until then the other ranks compute too,
    and share the CPUs as they would without the sleep.
    """

    def __init__(self, pace: Pace, activity: Activity | None = None) -> None:
        super().__init__(activity)
        self._pace = pace

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        with super().__call__(phase):
            yield
            if phase in {"backward", "optimizer"}:
                self._pace.catch_up()

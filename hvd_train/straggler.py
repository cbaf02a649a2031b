"""The clock of a rank that is made slower: what it computes also looks as slow as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hvd_train.clock import Clock
from hvd_train.comm._emulated import Pace


class SlowClock(Clock):
    """Sleeps where `pace` demands it within the phases in which a rank computes, so that its measured speed is the slower one.

    Only after backward and optimizer: until then the others compute too, and share the processors as they would without it.
    """

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        with super().__call__(phase):
            yield
            if phase in {"backward", "optimizer"}:
                self._pace.catch_up()

"""How much time a rank spends in each phase of training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from hvd_train.compute.activity import Activity

COMPUTING = ("data", "forward", "backward", "optimizer")
"""The phases in which a rank computes."""


class Clock:
    """Measures the phases of training, and reports the current one to `activity`.

    `with clock(phase):` measures a phase; `clock.enter(phase)` only reports it.
    """

    def __init__(self, activity: Activity | None = None) -> None:
        self.activity = activity or Activity()
        self.seconds = dict.fromkeys(("data", "forward", "backward", "comm", "optimizer", "eval"), 0.0)
        """Seconds spent in each phase so far."""

    @property
    def computing(self) -> float:
        """Seconds spent computing so far."""
        return sum(self.seconds[phase] for phase in COMPUTING)

    def enter(self, phase: str) -> None:
        self.activity.enter(phase)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self.enter(phase)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - begin

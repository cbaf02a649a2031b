"""Where a rank's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds spent in each phase of training; which is the last, and how often one began."""

    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("data", "forward", "backward", "comm", "optimizer", "eval"), 0.0)
    )
    phase: str = "start"
    turn: int = 0

    @property
    def computing(self) -> float:
        """Seconds of the phases in which a rank computes."""
        return sum(self.seconds[phase] for phase in ("data", "forward", "backward", "optimizer"))

    def enter(self, phase: str) -> None:
        self.phase = phase
        self.turn += 1

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self.enter(phase)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - begin

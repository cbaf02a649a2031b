"""Signals that ask a run to stop at the end of the next step."""

from __future__ import annotations

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Is set by SIGTERM and SIGUSR1. The handler does nothing else, so it is safe at any moment.

    It is also set if the request `of_process` is, which outlives it.
    """

    def __init__(self, of_process: StopRequest | None = None) -> None:
        self.signal = 0
        """The number of the last signal; 0 if none came."""
        self._of_process = of_process

    def is_set(self) -> bool:
        return self.signal > 0 or (self._of_process is not None and self._of_process.is_set())

    def set(self) -> None:
        """Ask for the stop as a signal does."""
        self.signal = signal.SIGUSR1

    def listen(self) -> None:
        """Install the handlers; main thread only."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

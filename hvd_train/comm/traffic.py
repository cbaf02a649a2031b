"""Counts what a rank sends: the bytes of training apart from those of control messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Traffic:
    """Payload bytes that a rank has sent, by the cost of the ring algorithms.

    Communicators and mailboxes report to it from any thread. A communicator shares it with the
    groups that are split from it.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.control = 0
        """Bytes sent within `aside`: for metrics, agreements, evaluations and checkpoints."""
        self._lock = threading.Lock()
        self._thread = threading.local()

    @property
    def training(self) -> int:
        """Bytes that were sent outside of `aside`."""
        return self.sent - self.control

    def add(self, payload: float) -> None:
        """Count `payload` bytes that the calling thread sends."""
        with self._lock:
            self.sent += round(payload)
            self.control += round(payload) if self._is_aside else 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Count what the calling thread sends within the block as control messages."""
        before, self._thread.aside = self._is_aside, True
        try:
            yield
        finally:
            self._thread.aside = before

    @property
    def _is_aside(self) -> bool:
        return getattr(self._thread, "aside", False)

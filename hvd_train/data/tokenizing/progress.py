"""Tell the user how far a long piece of work is."""

from __future__ import annotations

import sys
import time

INTERVAL = 5.0
"""Seconds between two lines that report the progress."""


class Progress:
    """Prints how much of `size` bytes is read, if this takes long."""

    def __init__(self, act: str, size: int) -> None:
        self._act, self._size = act, size
        self._begin = self._last = time.monotonic()

    def __call__(self, read: int) -> None:
        now = time.monotonic()
        if now - self._last < INTERVAL or not read:
            return
        self._last = now
        rate = read / (now - self._begin)
        print(
            f"ddl: {self._act}: {read / 1e6:,.0f} of {self._size / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s, "
            f"{(self._size - read) / rate:,.0f} s left",
            file=sys.stderr,
            flush=True,
        )

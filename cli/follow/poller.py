"""Wait for bytes on several descriptors and for the end of processes."""

from __future__ import annotations

import contextlib
import os
import selectors
from collections.abc import Callable
from typing import IO

Receiver = Callable[[bytes], None]
"""A function that takes the bytes of a source as they arrive, and b"" at the end of the source."""

READ_BYTES = 65536


class Poller:
    """Passes the bytes of each source to its receiver."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def add(self, source: IO[bytes], receive: Receiver) -> None:
        """Read from `source`; do nothing if it is read from already."""
        if source not in self._selector.get_map():
            self._selector.register(source, selectors.EVENT_READ, receive)

    def pause(self, source: IO[bytes]) -> None:
        """Stop reading from `source` until the next `add`."""
        if source in self._selector.get_map():
            self._selector.unregister(source)

    def add_process(self, pid: int, ended: Callable[[], None]) -> None:
        """Call `ended` when the process `pid` of this machine ends.

        A process that is gone already is ignored.
        """
        with contextlib.suppress(OSError):
            self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, lambda _: ended())

    def poll(self, seconds: float) -> list[object]:
        """Wait at most `seconds`, call the receivers of ready sources, and return these sources."""
        ready = [key for key, _ in self._selector.select(seconds)]
        for key in ready:
            is_process = isinstance(key.fileobj, int)
            data = b"" if is_process else os.read(key.fd, READ_BYTES)
            if not data:
                self._selector.unregister(key.fileobj)
            if is_process:
                os.close(key.fd)
            key.data(data)
        return [key.fileobj for key in ready]

    def close(self) -> None:
        """Stop waiting. The sources stay open."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, int):
                os.close(key.fd)
        self._selector.close()

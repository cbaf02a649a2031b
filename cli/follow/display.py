"""Standard output and error of this command, written at the pace of their readers."""

from __future__ import annotations

import os
import threading
from collections import deque

CAPACITY = 2**20
"""Bytes in the queue of a sink above which the sink is full."""


class BackgroundWriter:
    """Writes to the file `descriptor` in a thread, so that a slow reader blocks nobody else.

    `problem` is the reason why the sink has stopped writing, or None.
    """

    def __init__(self, descriptor: int) -> None:
        self.problem: str | None = None
        self._descriptor = descriptor
        self._queue: deque[bytes] = deque()
        self._size = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def full(self) -> bool:
        """True if the reader is so far behind that producers should pause."""
        return self._size > CAPACITY

    def write(self, data: bytes) -> None:
        """Queue `data`, or drop it if there is a `problem`."""
        if not data or self.problem:
            return
        with self._changed:
            self._queue.append(data)
            self._size += len(data)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._pump, name=f"sink-{self._descriptor}", daemon=True)
            self._thread.start()

    def drain(self, seconds: float) -> bool:
        """Wait at most `seconds` for an empty queue.

        Return True if it is empty or a `problem` has occurred.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._size or self.problem is not None, seconds)

    def close(self) -> None:
        """End the thread after it has written the queue; return at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _pump(self) -> None:
        while data := self._next():
            try:
                while data:
                    written = os.write(self._descriptor, data)
                    data = data[written:]
                    with self._changed:
                        self._size -= written
                        self._changed.notify_all()
            except OSError as error:
                with self._changed:
                    self.problem = error.strerror or str(error)
                    self._queue.clear()
                    self._size = 0
                    self._changed.notify_all()
                return

    def _next(self) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            return self._queue.popleft() if self._queue else b""


class Display:
    """The terminal of this command, or the files that its output goes to.

    With `quiet`, the stdout of ranks is not shown. With `verbose`, the stderr of a launcher is
    shown even after a rank has failed, when most of it describes consequences.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.out, self.err = BackgroundWriter(1), BackgroundWriter(2)
        self.verbose = verbose
        self._quiet = quiet
        self._warned = False

    @property
    def full(self) -> bool:
        return self.out.full or self.err.full

    def show(self, data: bytes) -> None:
        """Write the output of ranks to stdout."""
        if not self._quiet:
            self.out.write(data)

    def say(self, text: str) -> None:
        """Write a message of this command to stderr."""
        self.err.write(f"ddl: {text}\n".encode())

    def warn_of_lost_output(self) -> None:
        """Report once that stdout cannot be written."""
        if self.out.problem and not self._warned:
            self._warned = True
            self.say(
                f"warning: cannot write to stdout ({self.out.problem}); the run continues, its output is not shown"
            )

    def drain(self, seconds: float) -> bool:
        """Wait at most `seconds` per stream for its reader.

        Return True if all output is written.
        """
        drained = self.out.drain(seconds) and self.err.drain(seconds)
        self.warn_of_lost_output()
        return drained

    def close(self) -> None:
        self.err.drain(0.1)
        self.out.close()
        self.err.close()

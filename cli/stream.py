"""What a launcher prints: pass it on at the reader's pace, take events out of it, keep its end."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hvd_train import events

TAIL = 2**18
"""Bytes of a launcher's last words that are kept to explain how it ended."""
ROOM = 2**20
"""Bytes that wait for the reader of a sink before the sink is full."""

HARMLESS = (
    rb"plm:ssh: Warning: setpgid\(",  # PRRTE: the child was quicker than its parent
    rb"Warning: Permanently added '[^']*' \([\w-]+\) to the list of known hosts",  # ssh
)
"""Lines of launchers that report no problem."""

_HARMLESS = re.compile(rb"^[^\n]*(?:" + rb"|".join(HARMLESS) + rb")[^\n]*\n", re.MULTILINE)
_TAG = re.compile(rb"\n\[\d+(?:,\d+)?\]<std(?:out|err)>: ?")
_TAG_BEGINNING = re.compile(rb"\n\[[\d,]*(?:\](?:<[a-z]*(?:>:?)?)?)?\Z")


class Sink:
    """Writes to the file `descriptor` in a thread of its own, so that a reader who is slow, or gone, stops nobody.

    `problem` says why nothing is written any more.
    """

    def __init__(self, descriptor: int) -> None:
        self.problem: str | None = None
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def full(self) -> bool:
        """Whether the reader is so far behind that no more should be taken in for now."""
        return self._size > ROOM

    def write(self, data: bytes) -> None:
        """Queues `data`; drops it once there is a `problem`."""
        if not data or self.problem:
            return
        with self._changed:
            self._waiting.append(data)
            self._size += len(data)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._pump, daemon=True)
            self._thread.start()

    def drain(self, seconds: float) -> bool:
        """Waits at most `seconds` until all is written; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._size or self.problem is not None, seconds)

    def close(self) -> None:
        """Ends the thread once it has nothing to write; waits for no reader."""
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
                    self._waiting.clear()
                    self._size = 0
                    self._changed.notify_all()
                return

    def _next(self) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return self._waiting.popleft() if self._waiting else b""


@dataclass
class Untagged:
    """Removes the tags that horovodrun puts before each line, however the stream is cut."""

    _rest: bytes = field(default=b"", init=False)
    _at_line_start: bool = field(default=True, init=False)

    def feed(self, data: bytes) -> bytes:
        """Text without tags; what may be the beginning of a tag waits for the next call, and with no data comes out as it is."""
        lead = b"\n" if self._at_line_start else b""
        whole = lead + self._rest + data
        beginning = _TAG_BEGINNING.search(whole) if data else None
        end = beginning.start() + 1 if beginning else len(whole)
        text = _TAG.sub(b"\n", whole[:end])
        self._rest = whole[end:]
        self._at_line_start = text.endswith(b"\n") if text else self._at_line_start
        return text[len(lead) :]


@dataclass
class Errors:
    """The stderr of a launcher: what its ranks report, and the last that was said in words."""

    tail: bytearray = field(default_factory=bytearray, init=False)
    _pending: bytes = field(default=b"", init=False)

    def end(self, size: int = TAIL) -> str:
        """The last words, at most `size` bytes of them."""
        return self.tail[-size:].decode(errors="replace")

    def feed(self, data: bytes) -> tuple[list[dict[str, Any]], bytes]:
        """The events and the words in `data`; with no data, at the end of the stream, what was not whole."""
        found, text, pending = events.split(self._pending + (data or b"\n"))
        if not data:
            text, pending = (text + pending).removesuffix(b"\n"), b""
        self._pending = pending
        text = _HARMLESS.sub(b"", text)
        self.tail += text
        del self.tail[:-TAIL]
        return found, text

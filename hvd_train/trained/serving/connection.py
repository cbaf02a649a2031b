"""A connection that a slow or endless request cannot keep.

uvicorn bounds the time between two requests only. A client could send a head or a body a byte at a
time, a head without an end, or never read its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hvd_train.trained.serving.joined import Joined


class Connection(HttpToolsProtocol):
    """uvicorn's connection with limits; one that exceeds a limit is closed.

    Times are in seconds. A request and its chunk headers may have `head_bytes` more than twice the
    bytes of the body.
    """

    read_seconds = 30.0
    """For a whole request, from the start of the connection or from the first byte."""
    write_seconds = 30.0
    """For the client to take what the kernel cannot buffer of an answer."""
    head_bytes = 65536

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading = _Timer()
        self._writing = _Timer()
        self._beside_body = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Joined(transport, self.loop))
        transport.set_write_buffer_limits(high=0)
        self._reading.start(self.loop, self.read_seconds, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading.cancel()
        self._writing.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._beside_body += len(data)
        super().data_received(data)
        if self._beside_body > self.head_bytes and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")
        elif self.cycle is not None and not self.cycle.more_body:
            self._reading.cancel()
        else:
            self._reading.start(self.loop, self.read_seconds, self.transport.abort)

    def on_message_begin(self) -> None:
        self._beside_body = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        self._beside_body -= 2 * len(body)
        super().on_body(body)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing.start(self.loop, self.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._writing.cancel()
        super().resume_writing()


class _Timer:
    """Calls a function once after some seconds, unless it is cancelled."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], None]) -> None:
        """Start the timer; one that runs is left as it is."""
        if self._handle is None:
            self._handle = loop.call_later(seconds, call)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

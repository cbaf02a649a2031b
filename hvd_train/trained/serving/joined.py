"""A transport that writes the head of an answer together with its body.

uvicorn writes them one after the other: two system calls, and two packets that wake the client
twice.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Joined(asyncio.Transport):
    """Holds a head until the next write. A head whose body does not follow at once goes alone."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop, self._head = transport, loop, b""

    def write(self, data: Any) -> None:
        if not self._head and data.startswith(b"HTTP/"):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._flush(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def _flush(self, body: bytes = b"") -> None:
        head, self._head = self._head, b""
        if head or body:
            self._transport.write(head + body)

"""Limits on the body of a request and on the number of requests in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from hvd_train.trained.serving.refusal import Refusal

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
RETRY_SECONDS = 1


class Disconnected(Exception):
    """The client closed the connection before it had sent the whole body."""


class Gate:
    """Admits at most `most` requests at a time."""

    def __init__(self, most: int) -> None:
        self._most, self.inside = most, 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request while it is served; Refusal with status 503 if there are too many."""
        if self.inside >= self._most:
            raise Refusal(
                503, f"the server is busy with {self._most} requests, its limit", {"retry-after": str(RETRY_SECONDS)}
            )
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], most: int) -> bytes:
    """Return the body of a request.

    Raise Refusal with status 413 as soon as the body is known to have more than `most` bytes: from
    its Content-Length, or from its first pieces. Raise Disconnected if the client goes away.
    """
    if int(headers.get(b"content-length", b"0")) > most:
        raise _too_large(most)
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > most:
            raise _too_large(most)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the body of the request is larger than {most / 1e6:g} MB, the limit of this server")

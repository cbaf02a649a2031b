"""One end of a connection between a rank and a worker process, which carries parcels."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from hvd_train.data.loading.parcel import INLINE, Parcel, opened


class Gone(Exception):
    """The other end of a channel is closed, or its process has ended."""


class Channel:
    """Sends and receives values over a `SOCK_SEQPACKET` socket.

    Both raise Gone. `private` is the one of `parcel.opened`.
    """

    def __init__(self, connection: socket.socket, *, private: bool = False) -> None:
        self._socket, self._private = connection, private

    def send(self, value: Any) -> None:
        """Send `value`; raise what `Parcel` raises."""
        parcel = Parcel(value)
        try:
            self.send_parcel(parcel)
        finally:
            parcel.close()

    def send_parcel(self, parcel: Parcel) -> None:
        try:
            if parcel.file < 0:
                self._socket.send(parcel.inline)
            else:
                socket.send_fds(self._socket, [b"f"], [parcel.file])
        except (BrokenPipeError, ConnectionResetError):
            raise Gone from None

    def receive(self, parts: Callable[[int], Any] | None = None) -> Any:
        """Return the next value; `parts` is the one of `parcel.opened`."""
        try:
            data, files, flags, _ = socket.recv_fds(self._socket, INLINE, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            raise Gone from None
        if not data:
            raise Gone
        if flags & socket.MSG_CTRUNC:
            raise OSError("data: this process has too many open files to receive a batch; raise its limit (ulimit -n)")
        return opened(data, files[0] if files else -1, parts, private=self._private)

    def close(self) -> None:
        self._socket.close()

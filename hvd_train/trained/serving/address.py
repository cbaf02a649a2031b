"""The address of a server. The command opens it, so that an address in use is known at once."""

from __future__ import annotations

import errno
import os
import socket

from hvd_train.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host` and `port`; UserError if it cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen()
    except OSError as error:
        raise UserError(_reason(host, port, error)) from None
    return opened


def _reason(host: str, port: int, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"--host: '{host}' has no address: {error.strerror}; expected a name or an address of this machine"
    if error.errno == errno.EADDRINUSE:
        return f"--port: {port} is in use on {host}; give another one, or --port 0 for any free port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host: '{host}' is no address of this machine; expected 127.0.0.1, 0.0.0.0 or one of its addresses"
    return f"--port: {port} on {host} cannot be opened: {os.strerror(error.errno or 0)}"


def url(opened: socket.socket) -> str:
    """Return the address of a socket for clients."""
    host, port = opened.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"

"""The HTTP server, its signals and its end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from hvd_train.trained.serving.connection import Connection

STOP_SECONDS = 60
"""The longest time that accepted requests may take after a signal."""


class Server(uvicorn.Server):
    """uvicorn's server, which ends with exit code 0 after SIGTERM or SIGINT.

    It stops listening, answers the requests that it has accepted, and ends. A second SIGINT ends it
    at once.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own version ends the process by the signal that it has handled.
        yield

    def end_on_signals(self) -> None:
        """Install the handlers of the signals, on the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)


def create(app: Any, connection: type[Connection] = Connection) -> Server:
    """Return the server of an ASGI application."""
    config = uvicorn.Config(
        app,
        http=connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return Server(config)

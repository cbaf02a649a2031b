"""What `ddl serve` requests from its server."""

from __future__ import annotations

from dataclasses import dataclass

from hvd_train.text.argument import Argument


@dataclass(frozen=True)
class Settings(Argument):
    """Serve the run at `run` on a socket that listens, which the process inherits."""

    run: str
    descriptor: int
    max_batch: int = 64
    """The most records that the model takes at once."""
    max_wait_ms: float = 2.0
    """The longest time that a record waits for others."""
    max_body_mb: float = 8.0
    max_concurrency: int = 256
    """The most requests whose body or answer is in memory."""
    threads: int | None = None
    """Threads of the model; by default one for each core."""

    @property
    def max_body(self) -> int:
        """The largest body of a request in bytes."""
        return int(self.max_body_mb * 1e6)

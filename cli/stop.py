"""What a signal to the command means for its job."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Literal

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
TOGETHER = 1.0
"""Seconds within which signals of a system are one: SLURM sends a job's to its script, to the step and to this command."""
KEYS = 0.3
"""Seconds within which two SIGINT are one: a wrapper passes on what the terminal has sent as well."""

Meaning = Literal["ask", "end", "nothing"]


@dataclass
class StopRequests:
    """Tells requests to save and stop from orders to end at once.

    The first signal asks. A second SIGINT, or a SIGTERM or SIGHUP that is repeated later than `TOGETHER`, ends the job.
    """

    first: dict[int, float] = field(default_factory=dict)
    """When each signal came for the first time, in this order."""
    _last: float = float("-inf")
    """When the last SIGINT came."""

    def hear(self, number: int, now: float) -> Meaning:
        """The meaning of signal `number`, which comes at `now`, in seconds."""
        asked, again = bool(self.first), number in self.first
        since = now - self.first.setdefault(number, now)
        if number == signal.SIGINT:
            quick, self._last = now - self._last < KEYS, now
            insists = asked and not quick
        else:
            insists = again and number != signal.SIGUSR1 and since > TOGETHER
        return "end" if insists else "nothing" if asked else "ask"

    def __bool__(self) -> bool:
        return bool(self.first)

    @property
    def last(self) -> int:
        """The signal that was heard for the first time last."""
        return list(self.first)[-1]

"""Decide when this command must end a job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cli.follow.observations import Observations
from cli.follow.process import GRACE
from cli.follow.stream import Streams
from cli.follow.verdict import Intervention
from cli.follow.watchdog import Watchdog

SETTLE_SECONDS = 1.0
"""Seconds without output after which all output counts as read."""
BUSY_SECONDS = 15.0
"""Seconds that a rank which ended has to report why while other ranks keep printing."""


@dataclass(frozen=True)
class Limits:
    """The limits at which a job is ended, in seconds.

    `timeout` is for the whole job, whose earlier starts took `spent`. `stall_timeout` is for a job
    without progress; 0 disables it. In an elastic job (Horovod elastic), whose ranks may join,
    leave and fail, `min_ranks` ranks must succeed, and Horovod handles stalls.
    """

    timeout: float | None = None
    stall_timeout: float = 0
    min_ranks: int | None = None
    spent: float = 0


class Supervisor:
    """Ends a job that exceeds its time limit, that stalls, or that lost a rank without a report.

    `timeout` is the time limit in seconds, and `deadline` the monotonic time at which it is
    reached.
    """

    def __init__(
        self,
        observed: Observations,
        streams: Streams,
        watchdog: Watchdog,
        timeout: float | None = None,
        deadline: float | None = None,
    ) -> None:
        self._observed = observed
        self._streams = streams
        self._watchdog = watchdog
        self._timeout = timeout
        self._deadline = deadline
        self._timed_out = False
        self._stall: str | None = None

    def intervention(self, signals: Sequence[int]) -> Intervention:
        """Return what this command did to the job, which received `signals`."""
        return Intervention(signals, self._timeout if self._timed_out else None, self._stall)

    def check_time(self) -> None:
        """End the job at its deadline."""
        if self._deadline is not None and not self._timed_out and time.monotonic() > self._deadline:
            self._timed_out = True
            self._observed.launcher.terminate(GRACE)

    def check(self) -> None:
        """End a job that does not end by itself. Call it about once a second."""
        if self._observed.launcher.end_by is not None or self._streams.paused:
            return
        now = time.monotonic()
        self._stall = self._watchdog.check(now)
        is_elastic = self._observed.min_ranks is not None
        if self._stall or (not is_elastic and (self._watchdog.is_over(now) or self._lost_rank(now))):
            self._observed.launcher.terminate(1)

    def _lost_rank(self, now: float) -> bool:
        """Return True if a rank ended and the output that may explain it counts as read."""
        is_quiet = now - self._observed.text_at > SETTLE_SECONDS
        return self._observed.exits.unreported(now, GRACE if is_quiet else BUSY_SECONDS)


def supervise(observed: Observations, streams: Streams, limits: Limits) -> Supervisor:
    """Return a supervisor of the job that starts now."""
    now = time.monotonic()
    watchdog = Watchdog(observed.state, limits.stall_timeout if limits.min_ranks is None else 0, now)
    left = None if limits.timeout is None else max(1.0, limits.timeout - limits.spent)
    return Supervisor(observed, streams, watchdog, limits.timeout, None if left is None else now + left)

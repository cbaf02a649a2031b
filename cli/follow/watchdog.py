"""Detect a job that makes no progress."""

from __future__ import annotations

from cli.follow.state import JobState, listed, positions

PAUSE = 5.0
"""Seconds between two checks after which this command itself must have been stopped."""
START_SECONDS = 60.0
"""Least seconds that a rank has to start, as Python, torch and MPI may load from slow disks."""
LATE = 3.0
"""Seconds since the last heartbeat after which a rank counts as late.

Healthy ranks send one a second.
"""

_WAITING = {"comm", "serve"}
"""Phases in which a rank waits for other ranks."""
_UNLIMITED = "checkpoint"
"""The phase without a time limit, as it depends on disks."""


class Watchdog:
    """Reports a stall when ranks make no progress for `seconds`; with 0 it reports none.

    `began` is the start of the job in monotonic seconds.
    """

    def __init__(self, state: JobState, seconds: float, began: float) -> None:
        self.seconds = seconds
        self._state = state
        self._began = self._checked = began
        self._all_ended: float | None = None

    def check(self, now: float) -> str | None:
        """Return why the job counts as stalled, or None. Call it about once a second."""
        if now - self._checked > PAUSE:
            for rank in self._state.ranks.values():
                rank.last_event = rank.last_progress = now
        self._checked = now
        everybody = len(self._state.ended) >= self._state.world_size
        self._all_ended = (self._all_ended or now) if everybody else None
        if not self.seconds:
            return None
        return self._not_started(now) or self._silent(now) or self._stuck(now)

    def is_over(self, now: float) -> bool:
        """Return True if all ranks ended `seconds` ago and the launcher still runs."""
        return self._all_ended is not None and 0 < self.seconds < now - self._all_ended

    def _not_started(self, now: float) -> str | None:
        """Report ranks that have not started: MPI and Horovod hang at start on a wrong network."""
        missing = set(range(self._state.world_size)) - self._state.started - self._state.lost
        limit = max(self.seconds, START_SECONDS)
        if not missing or now - self._began <= limit:
            return None
        head = f"{listed(missing)} did not start within {limit:g} seconds"
        return "\n".join([head, *positions(self._state.running())])

    def _silent(self, now: float) -> str | None:
        """Report ranks without heartbeats once no other rank is late, to name all silent ranks."""
        running = self._state.running()
        silent = [rank for rank in running if now - rank.last_event > self.seconds]
        if not silent or any(LATE < now - rank.last_event <= self.seconds for rank in running):
            return None
        head = (
            f"{listed(rank.number for rank in silent)} sent no heartbeat for {self.seconds:g} seconds (--stall-timeout)"
        )
        return f"{head}\n{self._state.describe(silent)}"

    def _stuck(self, now: float) -> str | None:
        """Report a job whose ranks all send heartbeats and remain in their phases."""
        running = self._state.running()
        if not running or any(r.position.turn is None or r.position.phase == _UNLIMITED for r in running):
            return None
        starting = any(rank.position.phase == "start" for rank in running)
        limit = max(self.seconds, START_SECONDS) if starting else self.seconds
        if now - max(rank.last_progress for rank in running) <= limit:
            return None
        late = [rank for rank in running if rank.position.phase not in _WAITING]
        head = f"no rank made progress for {limit:g} seconds (--stall-timeout)"
        culprits = f"; the others wait for {listed(r.number for r in late)}" if 0 < len(late) < len(running) else ""
        return "\n".join([head + culprits, *positions(running)])

"""The process or host of a job that went first."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cli.follow.state import JobState, Rank

CONSEQUENCES = 20.0
"""Seconds within which a job ends because one of its processes did."""


@dataclass(frozen=True)
class EarlyExit:
    """A process that ended before its job did, or with `pid` 0 a connection to a host that closed.

    `ranks` ended with it. `when` is monotonic; `wall` is the wall-clock time, as in events of
    ranks.
    """

    pid: int
    when: float
    ranks: list[Rank]
    wall: float = field(default_factory=time.time)

    @property
    def rank(self) -> Rank | None:
        """The rank that the process was; None for a launcher's daemon and for a connection."""
        return next((rank for rank in self.ranks if rank.pid == self.pid), None)

    @property
    def numbers(self) -> set[int]:
        return {rank.number for rank in self.ranks}

    def __str__(self) -> str:
        if self.rank:
            return f"{self.rank} ended without reporting an error"
        host = self.ranks[0].host
        return f"the launcher's daemon ended on {host}" if self.pid else f"the connection to {host} is lost"


class EarlyExits:
    """Remembers the first early exit of a job.

    Exits in the next `CONSEQUENCES` seconds are its consequences, unless the job survives it.
    """

    def __init__(self, state: JobState) -> None:
        self._state = state
        self._first: EarlyExit | None = None

    def process_ended(self, machine: str, pid: int, now: float) -> None:
        """Record that a process on `machine` ended, or with `pid` 0 the connection to `machine`."""
        ranks = [rank for rank in self._state.running(machine) if pid in {0, rank.pid, rank.parent}]
        if ranks and not self._explains(now):
            self._first = EarlyExit(pid, now, ranks)

    def host_lost(self, name: str, now: float) -> None:
        """Record that the launcher lost the host that it calls `name`."""
        for machine in dict.fromkeys(rank.machine for rank in self._state.on_host(name)):
            self.process_ended(machine, 0, now)

    def first(self, now: float) -> EarlyExit | None:
        """Return the first early exit if it is recent and took a rank along that had not ended."""
        first = self._first
        if first is None or now - first.when > CONSEQUENCES or first.numbers <= self._state.ended:
            return None
        return first

    def unreported(self, now: float, seconds: float) -> bool:
        """Return True if a rank ended more than `seconds` ago and no rank has reported why."""
        first = self.first(now)
        return first is not None and first.rank is not None and now - first.when > seconds

    def _explains(self, now: float) -> bool:
        """Return True if an exit at `now` is a consequence of the first one."""
        first = self._first
        return first is not None and now - first.when <= CONSEQUENCES and not first.numbers <= self._state.lost

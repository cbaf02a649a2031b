"""All that is known of a job while it runs."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Any

from cli.follow import blame
from cli.follow.exits import EarlyExits
from cli.follow.process import LauncherProcess
from cli.follow.state import JobState
from cli.follow.stream import ErrorStream
from cli.follow.verdict import Evidence, Intervention, LauncherEnd, LocalRanks
from hvd_train.rank import events


class Observations:
    """Collects the events of ranks, the stderr of the launcher, and the processes that ended.

    `min_ranks` is the number of ranks that must succeed in an elastic job, and None in any other.
    `text_at` is the time at which the launcher last printed text.
    """

    def __init__(self, launcher: LauncherProcess, state: JobState, min_ranks: int | None = None) -> None:
        self.launcher = launcher
        self.state = state
        self.min_ranks = min_ranks
        self.exits = EarlyExits(state)
        self.errors = ErrorStream()
        self.events: list[Mapping[str, Any]] = []
        self.text_at = 0.0

    def record(self, event: Mapping[str, Any]) -> None:
        """Record an event of a rank."""
        self.state.record(event, time.monotonic())
        if event["event"] != "beat":
            self.events.append(event)

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        """Return the events of one kind, oldest first."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def failed(self) -> bool:
        """True if a rank has failed, which an elastic job may survive."""
        return self.min_ranks is None and any(
            event["event"] in {"failed", "refused"} or event.get("exit_code") for event in self.events
        )

    @property
    def stop_signal(self) -> int | None:
        """The signal by which ranks want to be asked to save and stop; None for a script."""
        started = self.of("started")
        return started[-1].get("stop") if started else None

    def process_ended(self, machine: str, pid: int) -> None:
        """Record that a process ended, unless the job is ending anyway."""
        is_consequence = machine == events.machine() and not self.launcher.is_running
        if not (self.launcher.end_by or is_consequence or self.failed):
            self.exits.process_ended(machine, pid, time.monotonic())

    def read_lost_hosts(self, size: int) -> bool:
        """Record the hosts that the last `size` bytes of stderr call lost.

        Return True if a host of the job is lost.
        """
        now = time.monotonic()
        for name in blame.lost(self.errors.end(size), self.launcher.name):
            self.exits.host_lost(name, now)
        return self.exits.first(now) is not None

    @property
    def local_ranks(self) -> dict[int, int]:
        """The rank by pid of each process on this machine that runs, as far as reported."""
        return {rank.pid: rank.number for rank in self.state.running(events.machine())}

    def evidence(self, intervention: Intervention) -> Evidence:
        """Return the evidence on a job whose launcher has ended."""
        return Evidence(
            state=self.state,
            launcher=LauncherEnd(self.launcher.name, self.launcher.returncode, self.errors.end()),
            events=self.events,
            exit=self.exits.first(time.monotonic()),
            intervention=intervention,
            min_ranks=self.min_ranks,
            local=LocalRanks(socket.gethostname(), self.local_ranks),
        )

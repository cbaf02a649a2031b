"""Run a command that starts ranks, follow it to its end, and explain how it ended."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from cli.follow.display import Display
from cli.follow.guard import Guards
from cli.follow.monitor import ProcessMonitor
from cli.follow.observations import Observations
from cli.follow.poller import Poller
from cli.follow.process import BEAT_SECONDS, GRACE, LauncherProcess
from cli.follow.reap import reap
from cli.follow.receiver import RunEnded, StderrReceiver, ignore
from cli.follow.record import RunRecord
from cli.follow.state import JobState
from cli.follow.stop import Signals, Stopper
from cli.follow.stream import TAIL, Streams, open_streams
from cli.follow.supervisor import SETTLE_SECONDS, Limits, Supervisor, supervise
from cli.follow.verdict import Intervention, Verdict, verdict
from cli.launch.job import Command
from cli.remote.reach import Reach

POLL_SECONDS = 0.2
ALONE = Reach()
"""A job on this machine alone."""
UNLIMITED = Limits()


@dataclass(frozen=True)
class Result:
    """The exit code of a job, the events of its ranks, whether a signal asked it to stop, and why it failed."""

    code: int
    events: Sequence[Mapping[str, Any]]
    stop_requested: bool
    reason: str = ""


def follow(
    command: Command,
    world_size: int,
    *,
    reach: Reach = ALONE,
    limits: Limits = UNLIMITED,
    quiet: bool = False,
    verbose: bool = False,
    progress: Callable[[], None] = lambda: None,
    stdin: int = subprocess.DEVNULL,
    run_ended: RunEnded = ignore,
) -> Result:
    """Run `command`, which starts `world_size` ranks, and print how the job ended if it failed.

    No process of the job is left on this machine or on the other hosts of `reach`. `quiet` and
    `verbose` are those of `Display`. `progress` is called once a second. `stdin` is the standard
    input of `command`, and `run_ended` as in `StderrReceiver`.
    """
    signals = Signals()
    guards = Guards([host.name for host in reach.others], limits.stall_timeout, reach.client)
    with (
        signals.handled(),
        closing(Poller()) as poller,
        closing(Display(quiet=quiet, verbose=verbose)) as display,
        closing(LauncherProcess(command, stdin)) as launcher,
        closing(RunRecord(command, guards, launcher.pid)) as record,
    ):
        observed = Observations(launcher, JobState(world_size), limits.min_ranks)
        monitor = ProcessMonitor(poller, guards, observed.process_ended, partial(_name_host, observed, record))
        receiver = StderrReceiver(observed, monitor, record, display, run_ended)
        streams = open_streams(poller, launcher, display, receiver.receive, tagged=command.tags_output)
        supervisor = supervise(observed, streams, limits)
        stopper = Stopper(signals, observed, monitor, display)
        periodic = (guards.beat, display.warn_of_lost_output, supervisor.check, progress)
        Follower(observed, monitor, streams, supervisor, stopper, periodic).run()
        found = _conclude(observed, supervisor.intervention(list(signals.requests.first)))
        _explain(found, observed, display, signals)
        return Result(found.code, observed.events, bool(signals.requests), found.text)


class Follower:
    """Follows a launcher: passes its output on and calls the collaborators that act on the job."""

    def __init__(
        self,
        observed: Observations,
        monitor: ProcessMonitor,
        streams: Streams,
        supervisor: Supervisor,
        stopper: Stopper,
        periodic: Sequence[Callable[[], None]],
    ) -> None:
        self._observed = observed
        self._monitor = monitor
        self._streams = streams
        self._supervisor = supervisor
        self._stopper = stopper
        self._periodic = periodic
        self._called = float("-inf")

    def run(self) -> None:
        """Follow the job to its end, and leave no process of it."""
        try:
            self._read_to_end()
            self._await_guards()
        finally:
            reap(self._observed.launcher, self._observed.local_ranks)
            self._monitor.dismiss()
        self._streams.finish()

    def _read_to_end(self) -> None:
        """Return when the launcher and its pipes have ended, or at its deadline.

        A process that outlives the launcher may hold the pipes: its output is read until it pauses.
        """
        launcher = self._observed.launcher
        last_read = ended = None
        while self._streams.open:
            has_read = self._streams.read(POLL_SECONDS)
            now = time.monotonic()
            self._stopper.act()
            self._call_periodic(now)
            self._supervisor.check_time()
            if launcher.is_overdue(now):
                return
            if launcher.is_running or self._streams.paused:
                continue
            ended = ended or now
            last_read = now if has_read or last_read is None else last_read
            if now - last_read > SETTLE_SECONDS or now - ended > GRACE:
                return

    def _await_guards(self) -> None:
        """Wait briefly for a guard to report an exit, unless the cause of the end is known."""
        if self._observed.launcher.end_by is not None or not self._monitor.has_guards:
            return
        now = time.monotonic()
        until = now + SETTLE_SECONDS
        while now < until and self._is_unexplained(now):
            self._streams.read(until - now)
            now = time.monotonic()

    def _is_unexplained(self, now: float) -> bool:
        observed = self._observed
        return not (
            observed.failed or self._stopper.was_asked or not observed.state.running() or observed.exits.first(now)
        )

    def _call_periodic(self, now: float) -> None:
        if now - self._called >= BEAT_SECONDS:
            self._called = now
            for call in self._periodic:
                call()


def _name_host(observed: Observations, record: RunRecord, machine: str, name: str) -> None:
    observed.state.name_host(machine, name)
    record.write_ranks(observed.of("started"))


def _conclude(observed: Observations, intervention: Intervention) -> Verdict:
    """Return how the job ended.

    If no process is known to have ended first, a host counts that the launcher reports as lost.
    """
    if not (intervention.signals or intervention.timeout or observed.exits.first(time.monotonic())):
        observed.read_lost_hosts(TAIL)
    return verdict(observed.evidence(intervention))


def _explain(found: Verdict, observed: Observations, display: Display, signals: Signals) -> None:
    """Print the verdict, then wait until all output is read or another signal arrives."""
    if found.unexplained and observed.failed and not display.verbose:
        display.err.write(bytes(observed.errors.tail))
    if found.text:
        display.say(found.text)
    received = signals.received
    while not display.drain(0.1) and signals.received == received:
        pass

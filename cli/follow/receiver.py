"""React to what a launcher prints on stderr: events of ranks, and text."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cli.follow.display import Display
from cli.follow.monitor import ProcessMonitor
from cli.follow.observations import Observations
from cli.follow.process import GRACE
from cli.follow.record import RunRecord

RunEnded = Callable[[Mapping[str, Any]], None]


def ignore(event: Mapping[str, Any]) -> None:
    """Do nothing."""


class StderrReceiver:
    """Records events and text, shows the text, and has new processes watched.

    `run_ended` receives the event that rank 0 of a pool reports at the end of each run.
    """

    def __init__(
        self,
        observed: Observations,
        monitor: ProcessMonitor,
        record: RunRecord,
        display: Display,
        run_ended: RunEnded = ignore,
    ) -> None:
        self._observed = observed
        self._monitor = monitor
        self._record = record
        self._display = display
        self._run_ended = run_ended

    def receive(self, data: bytes) -> None:
        """Take the next bytes of stderr, b"" at its end."""
        found, text = self._observed.errors.feed(data)
        for event in found:
            self._handle(event)
        if text:
            self._observed.text_at = time.monotonic()
            self._end_srun_without_host(len(text) + 200)
        if self._display.verbose or not self._observed.failed:
            self._display.err.write(text)

    def _handle(self, event: Mapping[str, Any]) -> None:
        self._observed.record(event)
        match event["event"]:
            case "beat":
                self._monitor.watch(event["machine"], event["pid"], event["parent"])
            case "lost":
                rank = self._observed.state.ranks.get(event["lost"], f"rank {event['lost']}")
                self._display.say(f"{rank} is lost; the other ranks continue without it")
            case "folder":
                self._record.open(Path(event["path"]))
                self._record.write_ranks(self._observed.of("started"))
            case "started":
                self._record.write_ranks(self._observed.of("started"))
            case "ended":
                self._record.close()
                self._run_ended(event)
            case "failed" if self._observed.min_ranks is None:
                self._observed.launcher.expect_end(GRACE)

    def _end_srun_without_host(self, size: int) -> None:
        """End srun when it reports a lost node. It would wait there until SLURM kills the job."""
        launcher = self._observed.launcher
        if launcher.name == "srun" and launcher.end_by is None and self._observed.read_lost_hosts(size):
            launcher.terminate(GRACE)

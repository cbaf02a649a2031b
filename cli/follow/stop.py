"""Handle the signals to this command while a job runs."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Literal

from cli.follow.display import Display
from cli.follow.monitor import ProcessMonitor
from cli.follow.observations import Observations
from cli.follow.process import GRACE

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
REPEAT_SECONDS = 1.0
"""Seconds within which equal signals count as one.

SLURM sends a signal to the batch script, to the step and to this command.
"""
KEY_SECONDS = 0.3
"""Seconds within which two SIGINT count as one, as a wrapper may repeat the terminal's signal."""

Meaning = Literal["ask", "end", "nothing"]


@dataclass
class StopRequests:
    """Distinguishes requests to save and stop from orders to end at once.

    The first signal asks. A second SIGINT ends the job, and so does a SIGTERM or SIGHUP that is
    repeated after `REPEAT_SECONDS`. `first` has the time at which each signal first arrived, in
    this order.
    """

    first: dict[int, float] = field(default_factory=dict)
    _last_interrupt: float = float("-inf")

    def interpret(self, number: int, now: float) -> Meaning:
        """Return the meaning of signal `number`, which arrives at `now`, in seconds."""
        asked, repeated = bool(self.first), number in self.first
        since = now - self.first.setdefault(number, now)
        if number == signal.SIGINT:
            quick, self._last_interrupt = now - self._last_interrupt < KEY_SECONDS, now
            insists = asked and not quick
        else:
            insists = repeated and number != signal.SIGUSR1 and since > REPEAT_SECONDS
        return "end" if insists else "nothing" if asked else "ask"

    def __bool__(self) -> bool:
        return bool(self.first)


class Signals:
    """Records the signals to this command; `Stopper` acts on them.

    `received` counts them.
    """

    def __init__(self) -> None:
        self.requests = StopRequests()
        self.received = 0
        self._pending: list[tuple[int, Meaning]] = []

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Install the handlers, and restore the previous ones at the end.

        Signals that were ignored stay ignored, as SIGHUP under nohup and SIGINT in a background job
        of a shell.
        """
        numbers = [number for number in HANDLED if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def take(self) -> list[tuple[int, Meaning]]:
        """Return the signals since the last call, with their meanings."""
        taken, self._pending = self._pending, []
        return taken

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received += 1
        self._pending.append((number, self.requests.interpret(number, time.monotonic())))


class Stopper:
    """Asks ranks to save and stop, or ends the job, as the signals to this command demand."""

    def __init__(self, signals: Signals, observed: Observations, monitor: ProcessMonitor, display: Display) -> None:
        self._signals = signals
        self._observed = observed
        self._monitor = monitor
        self._display = display

    @property
    def was_asked(self) -> bool:
        """True if a signal has asked the job to stop."""
        return bool(self._signals.requests)

    def act(self) -> None:
        """Act on the signals since the last call.

        A job without a rank to ask ends at the first one.
        """
        for number, meaning in self._signals.take():
            if meaning == "ask" and self._ask(number):
                if number == signal.SIGINT:
                    self._display.say("asked all ranks to save and stop; press Ctrl-C again to end them at once")
            elif meaning != "nothing":
                launcher = self._observed.launcher
                launcher.terminate(0 if launcher.end_by is not None else GRACE)

    def _ask(self, number: int) -> bool:
        """Send the request to all ranks that have started. Return False if there is none.

        Scripts receive the signal `number` itself, and SIGTERM for SIGHUP.
        """
        asks = self._observed.stop_signal or (signal.SIGTERM if number == signal.SIGHUP else number)
        running = self._observed.state.running()
        missed = self._monitor.signal(asks, running)
        by_launcher = asks == signal.SIGUSR1 and bool(missed)
        if by_launcher:
            self._observed.launcher.send_signal(asks)  # srun and mpirun forward it to ranks
        return by_launcher or bool({rank.machine for rank in running} - missed)

"""Start a launcher and bound the time that it takes to end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import IO

from cli.launch.job import Command
from hvd_train.rank.heartbeat import BEAT

GRACE = 4.0
"""Seconds that a launcher has to end a job after a rank has failed or after SIGTERM."""
BEAT_SECONDS = 1.0
"""Seconds between two heartbeats of a rank."""

_PR_SET_PDEATHSIG = 1


class LauncherProcess:
    """The process of `command`, in a session of its own, with `stdin` as its standard input.

    `end_by` is the monotonic time at which this command stops waiting for it, or None.
    """

    def __init__(self, command: Command, stdin: int = subprocess.DEVNULL) -> None:
        self.name = Path(command.argv[0]).name
        self.end_by: float | None = None
        self._process = subprocess.Popen(
            (*command.prefix, *command.argv),
            env=command.within({**os.environ, BEAT: f"{BEAT_SECONDS:g}"}),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def stderr(self) -> IO[bytes]:
        assert self._process.stderr is not None
        return self._process.stderr

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def returncode(self) -> int:
        """The exit code of a launcher that has ended; negative for a signal."""
        assert self._process.returncode is not None
        return self._process.returncode

    def is_overdue(self, now: float) -> bool:
        return self.end_by is not None and now > self.end_by

    def expect_end(self, seconds: float) -> None:
        """Set the deadline for a launcher that ends by itself, unless it has one."""
        if self.end_by is None:
            self.end_by = time.monotonic() + seconds

    def terminate(self, seconds: float) -> None:
        """Send SIGTERM, and set the deadline unless there is an earlier one."""
        by = time.monotonic() + seconds
        self.end_by = by if self.end_by is None else min(self.end_by, by)
        self._process.terminate()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        """Return after the launcher has ended: by SIGTERM, or by SIGKILL to its process group."""
        self._process.terminate()
        try:
            self._process.wait(timeout=GRACE if self.end_by is None else 1)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """Close the pipes."""
        self.stdout.close()
        self.stderr.close()


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to the launcher if this command is killed."""
    with contextlib.suppress(AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

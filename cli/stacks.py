"""The Python stacks of ranks on this machine: the program `cli.stacks PID ...` prints them in a frame, by process id."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from cli import ssh
from hvd_train.heartbeat import STACK

SECONDS = 3.0
"""How long a rank may take to answer; one that is stopped never does."""


def stack(pid: int) -> str:
    """All threads of the rank `pid`, the latest call first; or why there is no answer."""
    file = _file(pid)
    if file is None:
        return f"process {pid} is no rank that can be asked"
    before = len(file.read_bytes())
    os.kill(pid, signal.SIGUSR2)
    text, deadline = "", time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.1)
        found = file.read_bytes()[before:].decode(errors="replace")
        if found and found == text:
            return text
        text = found
    return text or f"no answer within {SECONDS:g} seconds; the process is {_state(pid)}"


def _file(pid: int) -> Path | None:
    """Where the rank writes its stack when it is asked by SIGUSR2; without one, that signal would end it."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(entry).startswith(f"/memfd:{STACK}"):
                return entry
    return None


def _state(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("State"))


if __name__ == "__main__":
    print(ssh.framed({pid: stack(int(pid)) for pid in sys.argv[1:]}))

"""The Python stacks of ranks on this machine.

`cli.follow.stacks PID ...` prints them in a frame, by process id.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from cli.remote import ssh
from hvd_train.rank import internal
from hvd_train.rank.heartbeat import STACK

SECONDS = 3.0
"""Seconds that a rank has to answer. A stopped process never answers."""

_FILE = re.compile(r'^  File "(.*)", line \d+ in ', re.MULTILINE)
_START = re.compile(r"/threading\.py$|/concurrent/futures/thread\.py$")
"""Source files of the calls that start a thread."""


class Stack(TypedDict):
    """`text` is the stack of a rank, or if `answered` is False, the reason why there is none."""

    answered: bool
    text: str


def stack(pid: int) -> Stack:
    """Return the stacks of all threads of the rank `pid`, innermost call first."""
    try:
        file = _file(pid)
        return _request(pid, file) if file else Stack(answered=False, text=f"process {pid} is not a rank of ddl")
    except OSError as error:
        return Stack(answered=False, text=f"process {pid} cannot be signalled: {error}")


def _request(pid: int, file: Path) -> Stack:
    """Send SIGUSR2 and wait until the rank has written its stacks to `file`."""
    before = len(file.read_bytes())
    os.kill(pid, signal.SIGUSR2)
    text, deadline = "", time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.1)
        found = file.read_bytes()[before:].decode(errors="replace")
        if found and found == text:
            break
        text = found
    if text:
        return Stack(answered=True, text=arrange(text))
    return Stack(answered=False, text=f"no answer within {SECONDS:g} seconds; the process is {_state(pid)}")


def arrange(text: str) -> str:
    """Return the output `text` of faulthandler with the main thread first.

    Threads of ddl itself and threads without Python frames are left out.
    """
    threads = [(thread, _FILE.findall(thread)) for thread in text.strip().split("\n\n")]
    mains = [thread for thread, files in threads if files and not _START.search(files[-1])]
    others = [thread for thread, files in threads if files and _START.search(files[-1]) and not _is_helper(files)]
    return "\n\n".join([*mains, *others])


def _is_helper(files: Sequence[str]) -> bool:
    """Return True for a thread of ddl itself. `files` has one file a call, innermost first."""
    first = next((file for file in reversed(files) if not _START.search(file)), "")
    return first.startswith(internal.PACKAGE + os.sep)


def _file(pid: int) -> Path | None:
    """Return the file that a rank writes its stacks to on SIGUSR2.

    Without it, None: the signal would kill the process.
    """
    folder = Path(f"/proc/{pid}/fd")
    for name in os.listdir(folder) if folder.exists() else ():
        with contextlib.suppress(FileNotFoundError):  # the file was closed meanwhile
            if os.readlink(folder / name).startswith(f"/memfd:{STACK}"):
                return folder / name
    return None


def _state(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("State"))


if __name__ == "__main__":
    print(ssh.framed({pid: stack(int(pid)) for pid in sys.argv[1:]}))

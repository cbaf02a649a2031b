"""The Python stacks of ranks on this machine: the program `cli.stacks PID ...` prints them in a frame, by process id."""

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

from cli import ssh
from hvd_train import internal
from hvd_train.heartbeat import STACK

SECONDS = 3.0
"""How long a rank may take to answer; one that is stopped never does."""

_FILE = re.compile(r'^  File "(.*)", line \d+ in ', re.MULTILINE)
_START = re.compile(r"/threading\.py$|/concurrent/futures/thread\.py$")
"""Files of the calls by which Python starts a thread."""


class Stack(TypedDict):
    """The stack of a rank, or with `answered` of False why there is none."""

    answered: bool
    text: str


def stack(pid: int) -> Stack:
    """The threads of the rank `pid`, the latest call first."""
    try:
        file = _file(pid)
        return _ask(pid, file) if file else Stack(answered=False, text=f"process {pid} is no rank that can be asked")
    except OSError as error:
        return Stack(answered=False, text=f"process {pid} cannot be asked: {error}")


def _ask(pid: int, file: Path) -> Stack:
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
    """What faulthandler wrote, the main thread first, without threads that ddl started for itself or that run no Python."""
    threads = [(thread, _FILE.findall(thread)) for thread in text.strip().split("\n\n")]
    mains = [thread for thread, files in threads if files and not _START.search(files[-1])]
    others = [thread for thread, files in threads if files and _START.search(files[-1]) and not _is_helper(files)]
    return "\n\n".join([*mains, *others])


def _is_helper(files: Sequence[str]) -> bool:
    """Whether the first call of a thread, after those that start it, is one of ddl; `files` has the latest call first."""
    first = next((file for file in reversed(files) if not _START.search(file)), "")
    return first.startswith(internal.HERE + os.sep)


def _file(pid: int) -> Path | None:
    """Where the rank writes its stack when it is asked by SIGUSR2; without one, that signal would end it."""
    folder = Path(f"/proc/{pid}/fd")
    for name in os.listdir(folder) if folder.exists() else ():
        with contextlib.suppress(FileNotFoundError):  # a file that was open for a moment
            if os.readlink(folder / name).startswith(f"/memfd:{STACK}"):
                return folder / name
    return None


def _state(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("State"))


if __name__ == "__main__":
    print(ssh.framed({pid: stack(int(pid)) for pid in sys.argv[1:]}))

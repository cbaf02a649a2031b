"""Marks beside the folders of runs: which process runs there, for a search that follows a killed one."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import psutil

from hvd_train.errors import UserError


def write(folder: Path, pid: int) -> None:
    """Write that the process `pid` runs in `folder`, for `await_end`."""
    started = psutil.Process(pid).create_time()
    _mark(folder).write_text(f"{pid} {started} {socket.gethostname()}\n", encoding="utf-8")


def remove(folder: Path) -> None:
    """Remove the mark of a run that has ended before its process."""
    _mark(folder).unlink(missing_ok=True)


def await_end(folder: Path, seconds: float = 30.0) -> None:
    """Wait for the process that a search that was killed left in `folder`; it saves and ends by itself."""
    by = time.monotonic() + seconds
    while _is_alive(folder) and time.monotonic() < by:
        time.sleep(0.05)
    if _is_alive(folder):
        raise UserError(
            f"{folder}: a process of the earlier search still runs here: {_mark(folder).read_text().strip()}"
        )


def _mark(folder: Path) -> Path:
    return folder.with_suffix(".pid")


def _is_alive(folder: Path) -> bool:
    try:
        pid, started, host = _mark(folder).read_text(encoding="utf-8").split()
        process = psutil.Process(int(pid))
        same = host == socket.gethostname() and process.create_time() == float(started)
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.NoSuchProcess):
        return False

"""The files in /dev/shm through which a rank shares memory in Open MPI."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

SHARED = Path("/dev/shm")
PREFIXES = ("sm_segment.", "vader_segment.", "osc_sm.", "osc_rdma.")
"""Prefixes of the names of these files. Other files in `SHARED` belong to the user."""


def segments(pid: int | Literal["self"]) -> set[Path]:
    """Return the files through which a process shares memory in Open MPI.

    They remain if its launcher is killed.
    """
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        paths = (Path(line.split(maxsplit=5)[5]) for line in lines if f" {SHARED}/" in line)
        return {path for path in paths if path.name.startswith(PREFIXES) and path.exists()}
    return set()


def remove_own() -> None:
    """Remove the files of this process, which ends without MPI's own end."""
    for path in segments("self"):
        path.unlink(missing_ok=True)

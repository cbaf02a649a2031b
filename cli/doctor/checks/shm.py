"""/dev/shm, which holds the shared memory of the ranks on a machine.

A container has 64 MiB by default.
"""

from __future__ import annotations

import os

from cli.doctor.base import Check, Finding

MIB = 2**20
LEAST = 16
"""Free MiB below which Open MPI has been seen to hang during its start."""
CONTAINER = 64
"""MiB of a container by default. The gradients of a large model do not fit."""


def create() -> Check:
    return Check(_examine)


def _examine() -> Finding:
    stat = os.statvfs("/dev/shm")
    return judge(stat.f_blocks * stat.f_frsize // MIB, stat.f_bavail * stat.f_frsize // MIB)


def judge(size: int, free: int) -> Finding:
    """Judge `size` and `free` in MiB."""
    found, facts = f"{size} MiB, {free} MiB free", {"size_mib": size, "free_mib": free}
    if free > CONTAINER:
        return Finding("ok", found, facts=facts)
    grow = "docker run --shm-size=8g, or as root: mount -o remount,size=8g /dev/shm"
    remedy = "remove files of ended jobs: ls -l /dev/shm" if size > CONTAINER else grow
    if free < LEAST:
        return Finding("error", f"{found}: ranks on this machine hang or fail", remedy, facts)
    return Finding("warning", f"{found}: gradients of a large model do not fit", remedy, facts)

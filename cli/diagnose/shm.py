"""/dev/shm, where the ranks of a machine share memory; a container's has 64 MiB unless told otherwise."""

from __future__ import annotations

import os

from cli.diagnose.base import Check, Finding

MIB = 2**20
LEAST = 16
"""MiB free, below which a run was seen to hang in Open MPI's own set-up."""
CONTAINER = 64
"""MiB of a container that was not told otherwise; gradients of a model of some size do not fit."""


def create() -> Check:
    return Check(_examine)


def _examine() -> Finding:
    stat = os.statvfs("/dev/shm")
    return judge(stat.f_blocks * stat.f_frsize // MIB, stat.f_bavail * stat.f_frsize // MIB)


def judge(size: int, free: int) -> Finding:
    """Of `size` and `free` MiB."""
    found, facts = f"{size} MiB, {free} MiB free", {"size_mib": size, "free_mib": free}
    if free > CONTAINER:
        return Finding("ok", found, facts=facts)
    grow = "docker run --shm-size=8g, or as root: mount -o remount,size=8g /dev/shm"
    remedy = "remove what ended jobs left: ls -l /dev/shm" if size > CONTAINER else grow
    if free < LEAST:
        return Finding("error", f"{found}: ranks of one machine hang or fail", remedy, facts)
    return Finding("warning", f"{found}: gradients of a large model do not fit", remedy, facts)

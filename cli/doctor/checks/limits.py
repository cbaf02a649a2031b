"""Limits of this shell that ranks inherit: open files, and locked memory for network cards."""

from __future__ import annotations

import resource
from pathlib import Path

from cli.doctor.base import Check, Finding

FILES = 1024
"""Smallest limit on open files that suffices for the connections and data workers of a rank."""


def create() -> Check:
    return Check(_examine)


def _examine() -> Finding:
    files, memory = (resource.getrlimit(r)[0] for r in (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK))
    cards = Path("/sys/class/infiniband")
    return judge(files, memory, rdma=cards.is_dir() and any(cards.iterdir()))


def judge(files: int, memory: int, rdma: bool) -> Finding:
    """Judge the limits. `rdma` is True if a network card pins memory (InfiniBand, RoCE)."""
    unlimited = memory == resource.RLIM_INFINITY
    open_files = "unlimited" if files == resource.RLIM_INFINITY else str(files)
    found = f"{open_files} open files, {'unlimited' if unlimited else f'{memory // 1024} KiB'} of locked memory"
    facts = {"nofile": None if open_files == "unlimited" else files, "memlock": None if unlimited else memory}
    if files != resource.RLIM_INFINITY and files < FILES:
        return Finding(
            "warning", found, f"ulimit -n {4 * FILES}; for ssh logins, nofile in /etc/security/limits.conf", facts
        )
    if rdma and not unlimited:
        remedy = "memlock unlimited in /etc/security/limits.conf; in SLURM, LimitMEMLOCK=infinity for slurmd"
        return Finding("warning", f"{found}, but InfiniBand needs unlimited locked memory", remedy, facts)
    return Finding("ok", found, facts=facts)

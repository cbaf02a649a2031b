"""How many threads a rank may use, from the processors it is allowed to run on."""

from __future__ import annotations

import os
from collections.abc import Mapping

LOCAL_SIZE = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "HOROVOD_LOCAL_SIZE",
    "SLURM_NTASKS_PER_NODE",
)


def threads(processors: int, machine: int, local_size: int) -> int:
    """Threads for one of `local_size` ranks that may use `processors` of a machine's.

    A rank that may use more than its share of the machine is not alone there, and takes its share only.
    """
    return max(1, min(processors, machine // local_size))


def set_threads(environment: Mapping[str, str] = os.environ) -> None:
    """Set OMP_NUM_THREADS where the user has not; to be called before torch is imported."""
    local_size = next((int(environment[v]) for v in LOCAL_SIZE if environment.get(v, "").isdigit()), 1)
    mine = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads(mine, os.cpu_count() or 1, local_size)))

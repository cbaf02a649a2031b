"""How many threads a rank uses, given the CPUs that it may run on."""

from __future__ import annotations

import os
from collections.abc import Mapping

LOCAL_SIZE = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "HOROVOD_LOCAL_SIZE",
    "SLURM_NTASKS_PER_NODE",
)
"""Variables in which launchers give the number of ranks on this host."""


def threads(processors: int, machine: int, local_size: int) -> int:
    """Return the number of threads of one of `local_size` ranks on a host.

    The rank may run on `processors` of the `machine` CPUs. A rank that may run on more CPUs than
    its share of the machine shares them with other ranks, and uses its share only.
    """
    return max(1, min(processors, machine // local_size))


def set_threads(environment: Mapping[str, str] = os.environ) -> None:
    """Set OMP_NUM_THREADS unless the user has set it. Call it before torch is imported."""
    local_size = next((int(environment[v]) for v in LOCAL_SIZE if environment.get(v, "").isdigit()), 1)
    mine = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads(mine, os.cpu_count() or 1, local_size)))

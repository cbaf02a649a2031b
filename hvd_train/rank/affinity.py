"""Which CPUs and GPUs a rank uses beside other jobs, and how many threads."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

LOCAL_SIZE = (
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "HOROVOD_LOCAL_SIZE",
    "SLURM_NTASKS_PER_NODE",
)
"""Variables in which launchers give the number of ranks on this host."""
LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "HOROVOD_LOCAL_RANK", "SLURM_LOCALID")
"""Variables in which launchers give the number of this rank among those on its host."""
SLOTS = "DDL_SLOTS"
"""Variable with the slots of a job that shares its hosts with other jobs: `2,3/8` for the slots 2 and 3
of 8 on its only host, or `h1=2,3/8;h2=0/8`."""
_DEVICES = "CUDA_VISIBLE_DEVICES"


def threads(processors: int, machine: int, local_size: int) -> int:
    """Return the number of threads of one of `local_size` ranks on a host.

    The rank may run on `processors` of the `machine` CPUs. A rank that may run on more CPUs than
    its share of the machine shares them with other ranks, and uses its share only.
    """
    return max(1, min(processors, machine // local_size))


def own_slots(text: str, host: str) -> tuple[tuple[int, ...], int]:
    """Return the slots of the job on `host` in the value of DDL_SLOTS, and how many slots the host has.

    Return no slots for a host that the value does not name.
    """
    hosts = dict(part.rpartition("=")[::2] for part in text.split(";"))
    numbers, _, count = hosts.get("", hosts.get(host, "/0")).partition("/")
    return tuple(int(number) for number in numbers.split(",") if number), int(count)


def share(cpus: Sequence[int], slot: int, slots: int) -> set[int]:
    """Return the part of `cpus` that belongs to `slot` of `slots`: at least one CPU."""
    first = slot * len(cpus) // slots
    return set(cpus[first : max(first + 1, (slot + 1) * len(cpus) // slots)])


def take_slots(environment: Mapping[str, str] = os.environ) -> None:
    """Run this rank on the CPUs, and the job on the GPUs, of its slots in DDL_SLOTS.

    Call it before torch is imported. Without the variable, do nothing.
    """
    slots, count = own_slots(environment.get(SLOTS, ""), os.uname().nodename) if SLOTS in environment else ((), 0)
    if not slots:
        return
    slot = slots[_number(LOCAL_RANK, 0, environment) % len(slots)]
    os.sched_setaffinity(0, share(sorted(os.sched_getaffinity(0), key=_core), slot, count))
    if devices := _devices(environment):
        os.environ[_DEVICES] = ",".join(dict.fromkeys(devices[slot % len(devices)] for slot in slots))


def set_threads(environment: Mapping[str, str] = os.environ) -> None:
    """Set OMP_NUM_THREADS unless the user has set it. Call it before torch is imported."""
    local_size = _number(LOCAL_SIZE, 1, environment)
    mine = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads(mine, os.cpu_count() or 1, local_size)))


def _number(names: Sequence[str], otherwise: int, environment: Mapping[str, str]) -> int:
    return next((int(environment[v]) for v in names if environment.get(v, "").isdigit()), otherwise)


def _core(cpu: int) -> tuple[int, int]:
    """Return a sort key under which the hardware threads of one core are neighbours."""
    try:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return cpu, cpu
    return int(re.split(r"\D", siblings)[0]), cpu


def _devices(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs of this host as CUDA_VISIBLE_DEVICES names them."""
    if _DEVICES in environment:
        return [name for name in environment[_DEVICES].split(",") if name]
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)

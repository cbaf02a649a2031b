"""Options of Hydra, the mpirun of MPICH and Intel MPI.

Hydra forwards the whole environment of the shell to every host, so no variable has to be named.
"""

from __future__ import annotations

from collections.abc import Mapping

from cli.hosts.hostfile import format_hosts
from cli.launch.job import Job
from cli.launch.placement import Placement
from hvd_train.errors import UserError


def mpich(job: Job, placement: Placement) -> list[str]:
    """Return the options for MPICH."""
    return [
        *("-n", str(job.world_size)),
        *(["-hosts", format_hosts(placement.hosts)] if placement.hosts else []),
        *_network(job),
        *("-bind-to", job.bind or (f"core:{placement.cores}" if placement.cores else "none")),
        *_environment(job.environment),
    ]


def intel(job: Job, placement: Placement) -> list[str]:
    """Return the options for Intel MPI."""
    return [
        *("-n", str(job.world_size)),
        *_intel_hosts(placement),
        *_network(job),
        *_environment({**_pinning(job, placement), **job.environment}),
    ]


def ssh(job: Job, flavor: str) -> dict[str, str]:
    """Return the variable with which `flavor` passes options to ssh."""
    name = "I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS" if flavor == "intel" else "HYDRA_LAUNCHER_EXTRA_ARGS"
    return {name: " ".join(job.ssh)} if job.ssh else {}


def _network(job: Job) -> list[str]:
    return ["-iface", job.network.interface] if job.network else []


def _environment(variables: Mapping[str, str]) -> list[str]:
    return [word for key, value in variables.items() for word in ("-genv", key, value)]


def _intel_hosts(placement: Placement) -> list[str]:
    slots = {host.slots for host in placement.hosts}
    if len(slots) > 1:
        raise UserError(
            "Intel MPI starts the same number of ranks on each host, but these hosts have unequal slots: "
            f"{format_hosts(placement.hosts)}; give all hosts the same number of slots"
        )
    names = ",".join(host.name for host in placement.hosts)
    return ["-ppn", str(slots.pop()), "-hosts", names] if slots else []


def _pinning(job: Job, placement: Placement) -> dict[str, str]:
    """Return the variables for pinning; if cores are too few, they turn it off."""
    if job.bind in {"core", "socket", "numa"}:
        return {"I_MPI_PIN_DOMAIN": str(job.bind)}
    return {"I_MPI_PIN": "0"} if job.bind or placement.shared else {}

"""Place the ranks of a job: hosts and slots, shared cores, cores per rank."""

from __future__ import annotations

from dataclasses import dataclass

from cli.hosts.hostfile import Host, check_slots, stretch
from cli.hosts.machine import Machine, cores_each
from cli.launch.job import Job
from hvd_train.errors import UserError


@dataclass(frozen=True)
class Placement:
    """The placement of a job.

    `hosts` have one slot per rank; they are empty if SLURM places the ranks.

    `remote` is True if other machines take part, `shared` if there are more busy threads than
    cores. `cores` is the number of cores to which each rank is bound, 0 for no binding.
    """

    hosts: tuple[Host, ...]
    remote: bool
    shared: bool
    cores: int
    notes: tuple[str, ...] = ()


def place(job: Job, machine: Machine) -> Placement:
    """Return the placement of `job` if `machine` starts it.

    UserError if its hosts have too few slots.
    """
    allocated = None if job.hosts else machine.allocation
    here = not machine.allocation and not machine.others(job.hosts)
    busy = 2 if job.engine == "horovod" else 1  # Horovod adds a polling thread to each rank
    full = allocated.crowded(busy) if allocated else here and job.world_size * busy > machine.cores
    each = cores_each(machine.packages, job.world_size)
    bindable = here and machine.whole and job.world_size > 1 and not job.oversubscribe and each >= busy
    crowded = here and job.world_size > machine.cores
    return Placement(
        hosts=_hosts(job, machine),
        remote=not here if allocated is None else len(allocated.hosts) > 1,
        shared=job.oversubscribe or full,
        cores=each if bindable else 0,
        notes=(f"{job.world_size} ranks share {_count(machine.cores, 'core')}",) if crowded else (),
    )


def _hosts(job: Job, machine: Machine) -> tuple[Host, ...]:
    if not job.hosts:
        return () if machine.allocation else (Host("localhost", job.world_size),)
    for host in job.hosts:
        if host.is_ipv6:
            raise UserError(
                f"launchers do not accept an IPv6 address such as {host.name}; add a name to /etc/hosts and use the name"
            )
    hosts = machine.renamed(job.hosts)
    if job.oversubscribe:
        return stretch(hosts, job.world_size)
    check_slots(hosts, job.world_size)
    return hosts


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

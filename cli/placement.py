"""Where the ranks of a job go: hosts and slots, shared cores, cores for each."""

from __future__ import annotations

from dataclasses import dataclass

from cli.hosts import Host, check_slots, stretch
from cli.launchers.base import Job
from cli.machine import Machine, cores_each
from hvd_train.errors import UserError


@dataclass(frozen=True)
class Placement:
    """`hosts` have a slot for every rank; there are none where a SLURM allocation says where ranks go.

    `remote` says that other machines take part, `shared` that busy threads outnumber cores, and `cores` is how many
    to bind each rank to: 0 where it is better left unbound.
    """

    hosts: tuple[Host, ...]
    remote: bool
    shared: bool
    cores: int
    notes: tuple[str, ...] = ()


def place(job: Job, machine: Machine) -> Placement:
    """The placement of `job` started on `machine`; UserError where its hosts have too few slots."""
    allocated = None if job.hosts else machine.allocation
    here = not machine.allocation and not machine.others(job.hosts)
    busy = 2 if job.engine == "horovod" else 1  # Horovod's own thread polls beside each rank's
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
                f"no launcher takes an IPv6 address such as {host.name}; give it a name in /etc/hosts and use that"
            )
    hosts = machine.renamed(job.hosts)
    if job.oversubscribe:
        return stretch(hosts, job.world_size)
    check_slots(hosts, job.world_size)
    return hosts


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

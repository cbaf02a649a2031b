"""The SLURM job that this command runs in: its hosts, the ranks on each, and the processors of a rank."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass

from cli.hosts import Host
from cli.launchers.base import Job
from cli.slurm import notation
from hvd_train.errors import UserError

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Allocation:
    """Job `job` with a slot for each of its tasks on `hosts`; `threads` are the processors that each task has.

    `cpus` are the job's processors (hardware threads) on each host, where SLURM says so.
    """

    job: str
    hosts: tuple[Host, ...]
    threads: int
    cpus: tuple[int, ...] = ()

    @property
    def slots(self) -> int:
        return sum(host.slots for host in self.hosts)

    def crowded(self, busy: int) -> bool:
        """Whether a host has fewer processors than its tasks, with `busy` threads each, keep busy."""
        return any(host.slots * busy > cpus for host, cpus in zip(self.hosts, self.cpus, strict=False))

    def world_size(self, np: int | None, *, oversubscribe: bool = False) -> int:
        """`np`, or as many ranks as there are tasks; UserError where there are too few for `np`."""
        if np is None or np <= self.slots or oversubscribe:
            return self.slots if np is None else np
        listed = ", ".join(f"{host.name}: {host.slots}" for host in self.hosts[:8])
        raise UserError(
            f"{np} ranks need {np} tasks and job {self.job} has {self.slots} ({listed}); ask SLURM for more "
            f"(--nodes, --ntasks-per-node), ask for --np {self.slots}, or let ranks share with --oversubscribe"
        )


def here(environment: Mapping[str, str] = os.environ) -> Allocation | None:
    """The allocation that this process is in, nodes with unequal numbers of tasks included."""
    if "SLURM_JOB_ID" not in environment or "SLURM_JOB_NODELIST" not in environment:
        return None
    names = notation.expand(environment["SLURM_JOB_NODELIST"])
    tasks = notation.counts(environment.get("SLURM_TASKS_PER_NODE", "")) or (1,) * len(names)
    hosts = tuple(Host(name, count) for name, count in zip(names, tasks, strict=False))
    cpus = notation.counts(environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
    return Allocation(environment["SLURM_JOB_ID"], hosts, _threads(tasks, cpus, environment), cpus)


def with_threads(job: Job, environment: Mapping[str, str] = os.environ) -> Job:
    """`job` with as many OpenMP threads a rank as the allocation has processors for it, where the user set none."""
    found = here(environment)
    if found is None or job.hosts or THREADS in environment or job.world_size > found.slots:
        return job
    return dataclasses.replace(job, environment={THREADS: str(found.threads), **job.environment})


def _threads(tasks: tuple[int, ...], cpus: tuple[int, ...], environment: Mapping[str, str]) -> int:
    if "SLURM_CPUS_PER_TASK" in environment:
        return int(environment["SLURM_CPUS_PER_TASK"])
    return max(1, min((available // count for available, count in zip(cpus, tasks, strict=False)), default=1))

"""The SLURM job around this command: its hosts, the ranks on each, and the CPUs of a rank."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from cli.hosts import notation
from cli.hosts.hostfile import Host
from hvd_train.errors import UserError

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Allocation:
    """An allocation of SLURM: `hosts` have one slot per task, and a task has `threads` CPUs.

    `cpus` has the CPUs (hardware threads) of the job on each host, and is empty if SLURM does not
    report them.
    """

    job: str
    hosts: tuple[Host, ...]
    threads: int
    cpus: tuple[int, ...] = ()

    @property
    def slots(self) -> int:
        """The number of tasks."""
        return sum(host.slots for host in self.hosts)

    def crowded(self, busy: int) -> bool:
        """Return True if a host has fewer CPUs than busy threads, `busy` for each task."""
        return any(host.slots * busy > cpus for host, cpus in zip(self.hosts, self.cpus, strict=False))

    def world_size(self, np: int | None, *, oversubscribe: bool = False) -> int:
        """Return `np`, or one rank per task; UserError if the job has fewer tasks than `np`."""
        if np is None or np <= self.slots or oversubscribe:
            return self.slots if np is None else np
        listed = ", ".join(f"{host.name}: {host.slots}" for host in self.hosts[:8])
        raise UserError(
            f"{np} ranks need {np} tasks but job {self.job} has {self.slots} ({listed}); request more from SLURM "
            f"(--nodes, --ntasks-per-node), use --np {self.slots}, or let ranks share tasks with --oversubscribe"
        )


def here(environment: Mapping[str, str] = os.environ) -> Allocation | None:
    """Return the allocation around this process, or None.

    Its nodes may have unequal numbers of tasks.
    """
    if "SLURM_JOB_ID" not in environment or "SLURM_JOB_NODELIST" not in environment:
        return None
    names = notation.expand(environment["SLURM_JOB_NODELIST"])
    tasks = notation.counts(environment.get("SLURM_TASKS_PER_NODE", "")) or (1,) * len(names)
    hosts = tuple(Host(name, count) for name, count in zip(names, tasks, strict=False))
    cpus = notation.counts(environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
    return Allocation(environment["SLURM_JOB_ID"], hosts, _threads(tasks, cpus, environment), cpus)


def _threads(tasks: tuple[int, ...], cpus: tuple[int, ...], environment: Mapping[str, str]) -> int:
    if "SLURM_CPUS_PER_TASK" in environment:
        return int(environment["SLURM_CPUS_PER_TASK"])
    return max(1, min((available // count for available, count in zip(cpus, tasks, strict=False)), default=1))

"""Make the starts of a job: each start is a command for some ranks on some hosts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from cli.hosts import allocation
from cli.hosts.hostfile import Host
from cli.launch import nesting
from cli.launch.choose import launch_command
from cli.launch.job import Command, Job
from cli.launch.target import Target, Targets


@dataclass(frozen=True)
class Start:
    """One start of a job: its `command` and `target`, for `ranks` on `hosts`."""

    command: Command
    target: Target
    hosts: tuple[Host, ...]
    ranks: int


@dataclass(frozen=True)
class Starter:
    """Makes the starts of one job.

    `template` has the parts of the job that are the same for every start.
    """

    launcher: str
    template: Job
    targets: Targets

    def start(self, hosts: tuple[Host, ...], ranks: int, resume: str | None, output: Path | None) -> Start:
        """Return the start of `ranks` on `hosts`; UserError if the launcher cannot run it."""
        target = self.targets(ranks, resume, output)
        job = dataclasses.replace(
            self.template,
            program=target.program,
            world_size=ranks,
            hosts=hosts,
            environment={**self.template.environment, **target.environment},
            outlives=target.outlives,
        )
        return Start(launch_command(self.launcher, job), target, hosts, ranks)


def world_size(np: int | None, hosts: tuple[Host, ...], *, oversubscribe: bool) -> int:
    """Return `np`, or else all tasks of the SLURM job, all slots of `hosts`, or 1.

    UserError if the SLURM job has too few tasks, or if another launcher started this process.
    """
    nesting.refuse_ranks()
    job = None if hosts else allocation.here()
    if job is not None:
        return job.world_size(np, oversubscribe=oversubscribe)
    return np or sum(host.slots for host in hosts) or 1

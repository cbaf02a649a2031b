"""The mpirun of Open MPI 4 and 5, MPICH (Hydra) and Intel MPI."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from cli.hosts.machine import Machine
from cli.launch import hydra, openmpi
from cli.launch.flavor import Flavor, detect
from cli.launch.job import Command, Job
from cli.launch.placement import Placement, place
from hvd_train.errors import UserError


@dataclass(frozen=True)
class Mpirun:
    """Starts ranks with `flavor.path`, with the options of its flavor and version."""

    flavor: Flavor
    machine: Machine
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def command(self, job: Job) -> Command:
        placement = place(job, self.machine)
        argv = (str(self.flavor.path), *self._options(job, placement), *job.words, *job.program)
        return Command(argv, self._variables(job), placement.notes)

    def _variables(self, job: Job) -> dict[str, str]:
        if self.flavor.name != "openmpi":
            return hydra.ssh(job, self.flavor.name)
        return openmpi.variables(openmpi.transports(self.flavor.version), {**self.environment, **job.environment})

    def _options(self, job: Job, placement: Placement) -> list[str]:
        if self.flavor.name == "openmpi":
            return openmpi.options(job, placement, self.flavor.version, root=self.machine.root)
        if self.flavor.name == "mpich":
            return hydra.mpich(job, placement)
        if self.flavor.name == "intel":
            return hydra.intel(job, placement)
        raise UserError(f"{self.flavor} starts ranks with srun; use --launcher srun inside an allocation")


def create() -> Mpirun:
    return Mpirun(detect(), Machine.here())

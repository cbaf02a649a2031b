"""mpirun of Open MPI 4 and 5, MPICH (Hydra) and Intel MPI."""

from __future__ import annotations

from dataclasses import dataclass

from cli.flavor import Flavor, detect
from cli.launchers import _hydra, _openmpi
from cli.launchers.base import Command, Job
from cli.machine import Machine
from cli.placement import Placement, place
from hvd_train.errors import UserError


@dataclass(frozen=True)
class Mpirun:
    """Ranks started by `flavor.path`, in the dialect of its flavour and version."""

    flavor: Flavor
    machine: Machine

    def command(self, job: Job) -> Command:
        placement = place(job, self.machine)
        argv = (str(self.flavor.path), *self._options(job, placement), *job.words, *job.program)
        environment = {} if self.flavor.name == "openmpi" else _hydra.ssh(job, self.flavor.name)
        return Command(argv, environment, placement.notes)

    def _options(self, job: Job, placement: Placement) -> list[str]:
        if self.flavor.name == "openmpi":
            return _openmpi.options(job, placement, self.flavor.version, root=self.machine.root)
        if self.flavor.name == "mpich":
            return _hydra.mpich(job, placement)
        if self.flavor.name == "intel":
            return _hydra.intel(job, placement)
        raise UserError(f"{self.flavor} starts its ranks with srun; use --launcher srun inside an allocation")


def create() -> Mpirun:
    return Mpirun(detect(), Machine.here())

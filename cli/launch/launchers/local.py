"""A single rank on this machine, without a launcher."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from cli.launch import openmpi
from cli.launch.job import Command, Job
from cli.launch.placement import Placement
from hvd_train.errors import UserError

_ALONE = Placement(hosts=(), remote=False, shared=False, cores=0)
_NEWEST = (5,)
"""The parameters of this version of Open MPI; other versions and libraries ignore those that they do not know."""
_NO_NEIGHBOURS = {"btl": f"{openmpi.transports(_NEWEST)['btl']},sm,vader"}
"""Open MPI would create 16 MiB in /dev/shm for other ranks, and only a launcher would remove them.
"""


@dataclass(frozen=True)
class Local:
    """Runs the program of one rank directly."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def command(self, job: Job) -> Command:
        if job.world_size != 1:
            raise UserError(f"--launcher local starts one rank but --np is {job.world_size}; use --launcher mpirun")
        refused = {"--hosts": job.hosts, "--bind": job.bind, "--launcher-args": job.words}
        unsupported = next((option for option, value in refused.items() if value), None)
        if unsupported:
            raise UserError(f"--launcher local does not support {unsupported}; use --launcher mpirun")
        parameters = {**openmpi.parameters(_ALONE, _NEWEST), **_NO_NEIGHBOURS}
        return Command(job.program, {**openmpi.variables(parameters, self.environment), **job.environment})


def create() -> Local:
    return Local()

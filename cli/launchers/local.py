"""One rank on this machine, without a launcher."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from cli.launchers import _openmpi
from cli.launchers.base import Command, Job
from cli.placement import Placement
from hvd_train.errors import UserError

_ALONE = Placement(hosts=(), remote=False, shared=False, cores=0)
_NO_NEIGHBOURS = {"btl": "^sm,vader"}
"""Open MPI would make 16 MiB in /dev/shm for neighbours, and leave them there, as no launcher removes them."""


@dataclass(frozen=True)
class Local:
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def command(self, job: Job) -> Command:
        if job.world_size != 1:
            raise UserError(f"--launcher local starts one rank, and --np is {job.world_size}; use --launcher mpirun")
        refused = {"--hosts": job.hosts, "--bind": job.bind, "--launcher-args": job.words}
        asked = next((option for option, value in refused.items() if value), None)
        if asked:
            raise UserError(f"--launcher local knows no {asked}; use --launcher mpirun")
        parameters = {**_openmpi.parameters(_ALONE, (5,)), **_NO_NEIGHBOURS}  # other MPI libraries pass them over
        return Command(job.program, {**_openmpi.variables(parameters, self.environment), **job.environment})


def create() -> Local:
    return Local()

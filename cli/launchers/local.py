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
        quiet = _openmpi.variables(
            _openmpi.parameters(_ALONE, (5,)), self.environment
        )  # other MPI libraries pass it over
        return Command(job.program, {**quiet, **job.environment})


def create() -> Local:
    return Local()

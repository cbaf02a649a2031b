"""One rank on this machine, without a launcher."""

from __future__ import annotations

from dataclasses import dataclass

from cli.launchers.base import Command, Job
from hvd_train.errors import UserError


@dataclass(frozen=True)
class Local:
    def command(self, job: Job) -> Command:
        if job.world_size != 1:
            raise UserError(f"--launcher local starts one rank, and --np is {job.world_size}; use --launcher mpirun")
        refused = {"--hosts": job.hosts, "--bind": job.bind, "--launcher-args": job.words}
        asked = next((option for option, value in refused.items() if value), None)
        if asked:
            raise UserError(f"--launcher local knows no {asked}; use --launcher mpirun")
        return Command(job.program, job.environment)


def create() -> Local:
    return Local()

"""From a launcher's name and a job to the command that runs it."""

from __future__ import annotations

from cli.launchers.base import Command, Job
from cli.slurm import allocation
from hvd_train import plugins


def command(name: str, job: Job) -> Command:
    """The command of the launcher `name`; 'auto' chooses one. UserError where it cannot run the job."""
    chosen = _auto(job) if name == "auto" else name
    made: Command = plugins.create("cli.launchers", chosen).command(allocation.with_threads(job))
    return made


def _auto(job: Job) -> str:
    """A rank alone needs no launcher; an allocation has its own; everything else is mpirun's."""
    if job.engine == "single":
        return "local"
    return allocation.launcher() if allocation.here() and not job.hosts else "mpirun"

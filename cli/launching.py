"""From a launcher's name and a job to the command that runs it."""

from __future__ import annotations

import shutil

from cli import nesting
from cli.launchers import srun
from cli.launchers.base import Command, Job
from cli.slurm import allocation
from hvd_train import plugins
from hvd_train.errors import UserError


def command(name: str, job: Job) -> Command:
    """The command of the launcher `name`; 'auto' chooses one. UserError where it cannot run the job."""
    nesting.refuse_ranks()
    chosen = _auto(job) if name == "auto" else name
    made: Command = plugins.create("cli.launchers", chosen).command(allocation.with_threads(job))
    return nesting.apart(made)


def _auto(job: Job) -> str:
    """A rank alone needs no launcher; an allocation has its own; everything else is mpirun's."""
    if job.engine == "single":
        return "local"
    return _allocated() if allocation.here() and not job.hosts else "mpirun"


def _allocated() -> str:
    """What starts ranks in an allocation: srun where it can talk to the MPI library, else mpirun; never ssh."""
    try:
        return "srun" if shutil.which("srun") and srun.plugin() else "mpirun"
    except UserError:
        return "mpirun"

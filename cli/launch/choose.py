"""Turn the name of a launcher and a job into the command that runs the job."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping

from cli.hosts import allocation
from cli.launch import nesting
from cli.launch.job import Command, Job
from cli.launch.launchers import srun
from hvd_train.config import plugins
from hvd_train.errors import UserError


def launch_command(launcher: str, job: Job) -> Command:
    """Return the command of `launcher` for `job`; 'auto' selects a launcher.

    UserError if it cannot run the job.
    """
    nesting.refuse_ranks()
    name = _auto(job) if launcher == "auto" else launcher
    command: Command = plugins.create("cli.launch.launchers", name).command(with_threads(job))
    return nesting.apart(command)


def with_threads(job: Job, environment: Mapping[str, str] = os.environ) -> Job:
    """Return `job` with one OpenMP thread for each CPU that the allocation has per rank.

    The job stays as it is if the user set the number of threads, or if it does not fit the
    allocation.
    """
    allocated = allocation.here(environment)
    if allocated is None or allocation.THREADS in environment:
        return job
    if job.hosts or job.world_size > allocated.slots:
        return job
    return dataclasses.replace(job, environment={allocation.THREADS: str(allocated.threads), **job.environment})


def _auto(job: Job) -> str:
    """Return local for a single rank, srun or mpirun inside an allocation, mpirun elsewhere."""
    if job.engine == "single":
        return "local"
    return _in_allocation() if allocation.here() and not job.hosts else "mpirun"


def _in_allocation() -> str:
    """Return srun if it has a plugin for the MPI library, else mpirun; neither needs ssh."""
    try:
        return "srun" if shutil.which("srun") and srun.plugin() else "mpirun"
    except UserError:
        return "mpirun"

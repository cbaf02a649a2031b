"""A command that runs inside what another launcher started: a step of SLURM, such as `srun --pty bash`, or a rank."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping

from cli.launchers.base import Command
from hvd_train.errors import UserError

_SIZES = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "HOROVOD_SIZE": "horovodrun",
}

# By the first, srun binds all that it starts to the processors of the task around it. The others make an MPI program take
# itself for a rank of the launcher around it; PMIX_MCA_ are parameters that the user may have set.
_OF_A_TASK = re.compile(
    r"SLURM_(CPU|MEM)_BIND(_\w+)?|SLURM_PMIX\w*|PMIX_(?!MCA_)\w+|PMI_(FD|ID|JOBID|PORT|RANK|SIZE|SPAWNED)|OMPI_COMM_WORLD_\w+"
)


def refuse_ranks(environment: Mapping[str, str] = os.environ) -> None:
    """UserError where this process is one of several that a launcher started, each of which would start all ranks."""
    if _is_shell(environment):
        return
    for variable, launcher in _SIZES.items():
        if int(environment.get(variable) or 1) > 1:
            raise UserError(
                f"{launcher} started this command {environment[variable]} times, and each would start a job of its own; "
                f"leave out {launcher}: ddl run starts the ranks"
            )


def apart(command: Command, environment: Mapping[str, str] = os.environ) -> Command:
    """`command` as a world of its own, which shares the processors of the step that this process is in."""
    unset = tuple(sorted(name for name in environment if _OF_A_TASK.fullmatch(name)))
    if "SLURM_STEP_ID" not in environment:
        return dataclasses.replace(command, unset=unset)
    # By default a step waits until others have given back its processors, and this one would wait for itself. mpirun of
    # Open MPI and Hydra start their daemons by srun.
    shared = {"SLURM_OVERLAP": "1", **command.environment}
    argv = (*_unbound(environment), *command.argv) if command.argv[0] != "srun" else command.argv
    return dataclasses.replace(command, argv=argv, environment=shared, unset=unset)


def _is_shell(environment: Mapping[str, str]) -> bool:
    """Whether this process runs below task 0 of `srun --pty`: other tasks of a step have no terminal."""
    if environment.get("SLURM_PROCID") != "0" or environment.get("SLURM_TASK_PID") == str(os.getpid()):
        return False
    return _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _unbound(environment: Mapping[str, str]) -> list[str]:
    """Words before a program that is to use the processors of all tasks here, and not only those of this one."""
    if environment.get("SLURM_CPU_BIND_TYPE") != "mask_cpu:" or not shutil.which("taskset"):
        return []
    masks = [int(mask, 16) for mask in environment.get("SLURM_CPU_BIND_LIST", "").split(",") if mask]
    cpus = {cpu for mask in masks for cpu in range(mask.bit_length()) if mask >> cpu & 1}
    return ["taskset", f"{sum(1 << cpu for cpu in cpus):#x}"] if cpus > os.sched_getaffinity(0) else []

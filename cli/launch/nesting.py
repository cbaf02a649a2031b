"""Start ranks inside a SLURM step such as `srun --pty bash`, or inside another rank."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping

from cli.launch.job import Command
from hvd_train.errors import UserError

_SIZES = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "HOROVOD_SIZE": "horovodrun",
}

# With the first group of variables, srun binds all that it starts to the CPUs of the surrounding
# task. With the others, an MPI program takes itself for a rank of the surrounding launcher.
# PMIX_MCA_ are parameters that users may set.
_OF_A_TASK = re.compile(
    r"SLURM_(CPU|MEM)_BIND(_\w+)?|SLURM_PMIX\w*|PMIX_(?!MCA_)\w+|PMI_(FD|ID|JOBID|PORT|RANK|SIZE|SPAWNED)|OMPI_COMM_WORLD_\w+"
)


def refuse_ranks(environment: Mapping[str, str] = os.environ) -> None:
    """Raise UserError if a launcher started several of this process: each would start all ranks."""
    if _is_shell(environment):
        return
    for variable, launcher in _SIZES.items():
        if int(environment.get(variable) or 1) > 1:
            raise UserError(
                f"{launcher} started this command {environment[variable]} times, and each of them would start a job; "
                f"leave out {launcher}: ddl run starts the ranks"
            )


def apart(command: Command, environment: Mapping[str, str] = os.environ) -> Command:
    """Return `command` without the variables of the surrounding launcher.

    Inside a SLURM step, the command shares the CPUs of the step.
    """
    unset = tuple(sorted(name for name in environment if _OF_A_TASK.fullmatch(name)))
    if "SLURM_STEP_ID" not in environment:
        return dataclasses.replace(command, unset=unset)
    # By default a new step waits until other steps free its CPUs, so it would wait for the step
    # that starts it. The mpirun of Open MPI and Hydra start their daemons with srun.
    shared = {"SLURM_OVERLAP": "1", **command.environment}
    prefix = () if command.argv[0] == "srun" else _unbound(environment)
    return dataclasses.replace(command, prefix=prefix, environment=shared, unset=unset)


def _is_shell(environment: Mapping[str, str]) -> bool:
    """Return True if this process runs below task 0 of `srun --pty`, which has the terminal."""
    if environment.get("SLURM_PROCID") != "0" or environment.get("SLURM_TASK_PID") == str(os.getpid()):
        return False
    return _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _unbound(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return a prefix for a program that may use the CPUs of all tasks on this host."""
    if environment.get("SLURM_CPU_BIND_TYPE") != "mask_cpu:" or not shutil.which("taskset"):
        return ()
    masks = [int(mask, 16) for mask in environment.get("SLURM_CPU_BIND_LIST", "").split(",") if mask]
    cpus = {cpu for mask in masks for cpu in range(mask.bit_length()) if mask >> cpu & 1}
    return ("taskset", f"{sum(1 << cpu for cpu in cpus):#x}") if cpus > os.sched_getaffinity(0) else ()

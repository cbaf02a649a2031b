"""Choose the engine of a job without importing one."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from hvd_train.errors import UserError

ENGINES = ("auto", "horovod", "mpi", "single")


def choose_engine(wanted: str, world_size: int, *, alone: bool) -> str:
    """Return the engine for `wanted`.

    `alone` is True if the user gave neither hosts nor a launcher.

    'auto' is single for one rank that is `alone`, Horovod on a machine with GPUs if it is built
    with NCCL, else mpi.
    """
    if wanted == "single" and world_size > 1:
        raise UserError(f"--engine single is a world of one rank and --np is {world_size}; use --engine mpi")
    if wanted == "horovod" and find_spec("horovod") is None:
        raise UserError(
            "--engine horovod: Horovod is not installed; scripts/install-horovod builds it, or use --engine mpi"
        )
    if wanted != "auto":
        return wanted
    if world_size == 1 and alone:
        return "single"
    return "horovod" if _has_gpu() and _has_nccl() else "mpi"


def script_engine(wanted: str) -> str:
    """Return the engine behind `import horovod` in a script.

    'auto' is Horovod if it is installed, else mpi.
    """
    if wanted != "auto":
        return wanted
    return "horovod" if find_spec("horovod") else "mpi"


def _has_gpu() -> bool:
    return Path("/dev/nvidia0").exists()


def _has_nccl() -> bool:
    if find_spec("horovod") is None:
        return False
    program = Path(sys.executable).with_name("horovodrun")
    listed = subprocess.run([program, "--check-build"], capture_output=True, text=True, check=False)
    return "[X] NCCL" in listed.stdout

"""`environment.json` of a run folder: where the run was started, with which versions."""

from __future__ import annotations

import os
import platform
import socket
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hvd_train.config.launch import Launch

_PACKAGES = ("ddl", "torch", "numpy", "mpi4py", "horovod", "safetensors")


def describe(launch: Launch) -> dict[str, Any]:
    """Return the content of `environment.json`."""
    return {
        "folder": os.getcwd(),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "world_size": launch.world_size,
        "engine": launch.engine,
        "versions": {"python": platform.python_version(), **versions(_PACKAGES)},
    }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of the installed ones of `packages`, without importing them."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

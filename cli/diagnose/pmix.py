"""PMIx, through which Open MPI's ranks find one another, and what another job may have left of it in this shell."""

from __future__ import annotations

import os
import re

from cli import flavor
from cli.diagnose._library import library
from cli.diagnose.base import Check, Finding

RANK_OF = ("PMIX_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
"""What a launcher sets for a rank: MPI in a process that has one takes itself for that rank."""


def create() -> Check:
    return Check(_examine, on_hosts=False)


def _examine() -> Finding:
    left = [name for name in os.environ if name in RANK_OF or name.startswith(("PMIX_NAMESPACE", "PMIX_SERVER_"))]
    version = _version() if library().name == "openmpi" else None
    facts = {"pmix": version, "left": left}
    if left:
        figure = f"this shell is a rank of another job ({', '.join(left)} set), and so would mpirun be"
        return Finding("error", figure, f"unset {' '.join(left)}", facts)
    if library().name != "openmpi":
        return Finding("ok", f"not needed: ranks of {library()} use PMI", facts=facts)
    return Finding("ok", f"{version or 'untold version'}, of {library()}", facts=facts)


def _version() -> str | None:
    program = flavor.find_program("pmix_info")
    found = re.search(r"PMIX: (\S+)", flavor.ask(str(program)).stdout) if program else None
    return found[1] if found else None

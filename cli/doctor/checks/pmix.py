"""PMIx, which connects the ranks of Open MPI, and its variables that another job set in this shell."""

from __future__ import annotations

import os
import re

from cli.doctor.base import Check, Finding
from cli.doctor.library import library
from cli.launch import flavor

RANK_VARIABLES = ("PMIX_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
"""Variables that a launcher sets for a rank. MPI in a process that has one acts as that rank."""


def create() -> Check:
    return Check(_examine, on_hosts=False)


def _examine() -> Finding:
    left = [
        name for name in os.environ if name in RANK_VARIABLES or name.startswith(("PMIX_NAMESPACE", "PMIX_SERVER_"))
    ]
    version = _version() if library().name == "openmpi" else None
    facts = {"pmix": version, "left": left}
    if left:
        figure = (
            f"this shell has the variables of a rank of another job ({', '.join(left)}), so mpirun acts as that rank"
        )
        return Finding("error", figure, f"unset {' '.join(left)}", facts)
    if library().name != "openmpi":
        return Finding("ok", f"not needed: {library()} uses PMI", facts=facts)
    return Finding("ok", f"{version or 'unknown version'}, of {library()}", facts=facts)


def _version() -> str | None:
    program = flavor.find_program("pmix_info")
    found = re.search(r"PMIX: (\S+)", flavor.ask(str(program)).stdout) if program else None
    return found[1] if found else None

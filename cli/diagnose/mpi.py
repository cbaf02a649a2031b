"""The mpirun that starts ranks, against the MPI library that mpi4py loads in them."""

from __future__ import annotations

from cli.diagnose._library import Library, library
from cli.diagnose.base import Check, Finding
from cli.flavor import TITLES, Flavor, ask, check_match, find_mpirun, recognise


def create() -> Check:
    return Check(_examine, alike=("mpi4py", "mpi"))


def _examine() -> Finding:
    path = find_mpirun()
    return judge(Flavor(*recognise(ask(str(path), "--version").stdout), path), library())


def judge(flavor: Flavor, loaded: Library) -> Finding:
    """UserError where the two are of different flavours."""
    check_match(flavor, loaded.text)
    facts = {"mpi4py": loaded.mpi4py, "mpi": str(loaded), "mpirun": str(flavor.path), "mpirun_version": str(flavor)}
    either = f"{flavor.path} and mpi4py {loaded.mpi4py}"
    if _series(flavor) != _series(loaded):
        figure = f"{flavor.path} is {flavor}, and mpi4py {loaded.mpi4py} loads {loaded}"
        return Finding("warning", figure, f"put the mpirun of {loaded} first on PATH", facts)
    return Finding("ok", f"{TITLES[loaded.name]}: {either} are of {loaded}", facts=facts)


def _series(mpi: Flavor | Library) -> tuple[int, ...]:
    """Open MPI keeps its word within a major version."""
    return mpi.version[:1] if mpi.name == "openmpi" else mpi.version[:2]

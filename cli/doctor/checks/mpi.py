"""The mpirun that starts ranks, compared with the MPI library that mpi4py loads."""

from __future__ import annotations

from cli.doctor.base import Check, Finding
from cli.doctor.library import Library, library
from cli.launch.flavor import TITLES, Flavor, ask, check_match, find_mpirun, recognise


def create() -> Check:
    return Check(_examine, identical=("mpi4py", "mpi"))


def _examine() -> Finding:
    path = find_mpirun()
    return judge(Flavor(*recognise(ask(str(path), "--version").stdout), path), library())


def judge(flavor: Flavor, loaded: Library) -> Finding:
    """Judge the two versions. Raise UserError if they are different implementations of MPI."""
    check_match(flavor, loaded.text)
    facts = {"mpi4py": loaded.mpi4py, "mpi": str(loaded), "mpirun": str(flavor.path), "mpirun_version": str(flavor)}
    if _series(flavor) != _series(loaded):
        figure = f"{flavor.path} is {flavor}, but mpi4py {loaded.mpi4py} loads {loaded}"
        return Finding("warning", figure, f"put the mpirun of {loaded} first on PATH", facts)
    return Finding(
        "ok", f"{TITLES[loaded.name]}: {flavor.path} and mpi4py {loaded.mpi4py} both use {loaded}", facts=facts
    )


def _series(mpi: Flavor | Library) -> tuple[int, ...]:
    """Return the version prefix within which mpirun and library are compatible."""
    return mpi.version[:1] if mpi.name == "openmpi" else mpi.version[:2]

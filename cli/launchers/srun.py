"""SLURM's own launcher, inside an allocation."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cli import flavor
from cli.launchers import _interface, _openmpi
from cli.launchers.base import Binding, Command, Job
from cli.machine import Machine
from cli.placement import place
from hvd_train.errors import UserError

_BINDINGS: dict[Binding, str] = {"core": "cores", "socket": "sockets", "numa": "ldoms", "none": "none"}
_PLUGINS: dict[flavor.Name, tuple[str, ...]] = {
    "openmpi": ("pmix",),
    "mpich": ("pmi2",),
    "intel": ("pmi2",),
    "cray": ("cray_shasta", "pmi2"),
}


@dataclass(frozen=True)
class Srun:
    """`plugin` is the value of `--mpi`; with a wrong one, srun starts worlds of one rank each, and says nothing.

    `openmpi` is the version of Open MPI that ranks load, None where they load another MPI library.
    """

    plugin: str
    machine: Machine
    openmpi: flavor.Version | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def command(self, job: Job) -> Command:
        if job.hosts:
            raise UserError("--launcher srun runs on the hosts of its allocation; leave out --hosts and --hostfile")
        return Command((*self._argv(job), *job.words, *job.program), {**self._parameters(job), **job.environment})

    def _parameters(self, job: Job) -> dict[str, str]:
        """What mpirun would be told by options."""
        network = _interface.variables(str(job.network)) if job.network else {}
        if self.openmpi is None:
            return network
        found = _openmpi.parameters(place(job, self.machine), self.openmpi)
        return {**_openmpi.variables(found, self.environment), **network}

    def _argv(self, job: Job) -> list[str]:
        # Values are not written into --export, which ends them at a comma: srun takes its own environment along.
        argv = ["srun", "--ntasks", str(job.world_size), f"--mpi={self.plugin}", "--export=ALL", "--kill-on-bad-exit=1"]
        cpus = self.environment.get("SLURM_CPUS_PER_TASK")
        if cpus:
            argv += ["--cpus-per-task", cpus]  # SLURM >= 22.05 does not take it over from sbatch
        if job.oversubscribe:
            argv += ["--overcommit"]
        if job.bind:
            argv += [f"--cpu-bind={_BINDINGS[job.bind]}"]
        return argv


def create() -> Srun:
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError(
            "--launcher srun works inside a SLURM allocation (salloc, sbatch), and SLURM_JOB_ID is not set; "
            "elsewhere, use --launcher mpirun"
        )
    name, version = _library()
    return Srun(plugin(), Machine.here(), version if name == "openmpi" else None)


@functools.cache
def plugin() -> str:
    """The value of `--mpi` for the MPI library here; UserError where srun has none for it."""
    return choose(listed(flavor.ask("srun", "--mpi=list").stdout), _library()[0])


@functools.cache
def _library() -> tuple[flavor.Name, flavor.Version]:
    return flavor.recognise(flavor.library_version())


def listed(text: str) -> list[str]:
    """Plugin names in the text of `srun --mpi=list`: one a line, and versions of pmix at its end."""
    return re.findall(r"^(?:srun:)?\s*(\w+)$", text, re.MULTILINE) + re.findall(r"pmix_v\d+", text)


def choose(plugins: list[str], library: flavor.Name) -> str:
    """The plugin for ranks that use `library`: of several versions of pmix, the newest."""
    for wanted in _PLUGINS[library]:
        fitting = [p for p in plugins if p == wanted or p.startswith(f"{wanted}_v")]
        if fitting:
            return max(fitting, key=_version)
    raise UserError(
        f"{flavor.TITLES[library]} needs srun's MPI plugin {' or '.join(_PLUGINS[library])}, and srun lists only "
        f"{', '.join(plugins) or 'none'}; inside the allocation, use --launcher mpirun instead"
    )


def _version(plugin: str) -> int:
    return int(plugin.rpartition("_v")[2]) if "_v" in plugin else 0

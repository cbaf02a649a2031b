"""The launcher of SLURM, inside an allocation."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cli.hosts.machine import Machine
from cli.launch import flavor, interface, openmpi
from cli.launch.job import Binding, Command, Job
from cli.launch.placement import place
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
    """Starts ranks with srun.

    `plugin` is the value of `--mpi`; a wrong one starts worlds of one rank, silently.

    `version` is the version of Open MPI that ranks load, None if they load another MPI library.
    """

    plugin: str
    machine: Machine
    version: flavor.Version | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def command(self, job: Job) -> Command:
        if job.hosts:
            raise UserError("--launcher srun uses the hosts of the allocation; leave out --hosts and --hostfile")
        return Command((*self._argv(job), *job.words, *job.program), {**self._parameters(job), **job.environment})

    def _parameters(self, job: Job) -> dict[str, str]:
        """Return the variables for what mpirun has options."""
        network = interface.variables(str(job.network)) if job.network else {}
        if self.version is None:
            return network
        parameters = {**openmpi.parameters(place(job, self.machine), self.version), **openmpi.transports(self.version)}
        return {**openmpi.variables(parameters, self.environment), **network}

    def _argv(self, job: Job) -> list[str]:
        # Values are not in --export, which would end them at a comma: ranks get the environment of
        # srun.
        argv = ["srun", "--ntasks", str(job.world_size), f"--mpi={self.plugin}", "--export=ALL", "--kill-on-bad-exit=1"]
        cpus = self.environment.get("SLURM_CPUS_PER_TASK")
        if cpus:
            argv += ["--cpus-per-task", cpus]  # since SLURM 22.05, srun does not inherit it from sbatch
        if job.oversubscribe:
            argv += ["--overcommit"]
        if job.bind:
            argv += [f"--cpu-bind={_BINDINGS[job.bind]}"]
        return argv


def create() -> Srun:
    if "SLURM_JOB_ID" not in os.environ:
        raise UserError(
            "--launcher srun works only inside a SLURM allocation (salloc, sbatch), but SLURM_JOB_ID is not set; "
            "use --launcher mpirun"
        )
    name, version = _library()
    return Srun(plugin(), Machine.here(), version if name == "openmpi" else None)


@functools.cache
def plugin() -> str:
    """Return the value of `--mpi` for the MPI library of mpi4py.

    UserError if srun has no plugin for it.
    """
    return choose_plugin(listed(flavor.ask("srun", "--mpi=list").stdout), _library()[0])


@functools.cache
def _library() -> tuple[flavor.Name, flavor.Version]:
    return flavor.recognise(flavor.library_version())


def listed(text: str) -> list[str]:
    """Return the plugins in the output of `srun --mpi=list`, versions of pmix included."""
    return re.findall(r"^(?:srun:)?\s*(\w+)$", text, re.MULTILINE) + re.findall(r"pmix_v\d+", text)


def choose_plugin(plugins: list[str], library: flavor.Name) -> str:
    """Return the plugin for `library`, and the newest one of several versions of pmix."""
    for wanted in _PLUGINS[library]:
        fitting = [p for p in plugins if p == wanted or p.startswith(f"{wanted}_v")]
        if fitting:
            return max(fitting, key=_version)
    raise UserError(
        f"{flavor.TITLES[library]} needs the MPI plugin {' or '.join(_PLUGINS[library])} of srun, but srun lists only "
        f"{', '.join(plugins) or 'none'}; inside the allocation, use --launcher mpirun instead"
    )


def _version(plugin: str) -> int:
    return int(plugin.rpartition("_v")[2]) if "_v" in plugin else 0

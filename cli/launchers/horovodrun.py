"""Horovod's launcher: through mpirun, or over Gloo where there is none."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cli.elastic import Elastic
from cli.flavor import Flavor, detect, find_program
from cli.hosts import format_hosts
from cli.launchers import _openmpi
from cli.launchers.base import Command, Job
from cli.machine import Machine
from cli.placement import Placement, place
from hvd_train import words
from hvd_train.errors import UserError

_LEFT_OUT = ("CUDA_VISIBLE_DEVICES",)
"""Variables of this shell that horovodrun does not hand to other hosts."""


@dataclass(frozen=True)
class Horovodrun:
    """Ranks started by horovodrun at `path`: by the mpirun of `flavor`, or over Gloo where that is None.

    horovodrun takes the whole environment of the shell to every host.
    """

    path: Path
    flavor: Flavor | None
    machine: Machine
    search_path: str

    def command(self, job: Job) -> Command:
        if job.elastic is not None:
            return self._elastic(job, job.elastic)
        placement = place(job, self.machine)
        if not placement.hosts:
            raise UserError("--launcher horovodrun knows no SLURM allocation; name --hosts, or use --launcher srun")
        where = (
            "-np",
            str(job.world_size),
            "-H",
            format_hosts(placement.hosts),
            *_network(job),
            *_ssh(job),
            *job.words,
        )
        if self.flavor is None:
            argv = (*_gloo(job), *where, *_without_mpi(job.program))
            return Command((str(self.path), *argv), job.environment, placement.notes, tags_output=True)
        argv = (*_mpi(job, placement, self.flavor), *where, *job.program)
        environment = {**self._finding(self.flavor), **job.environment}
        return Command((str(self.path), *argv), environment, placement.notes, tags_output=True)

    def _elastic(self, job: Job, elastic: Elastic) -> Command:
        """Over Gloo, of which alone Horovod can change the number of ranks. It needs two hosts to find a network."""
        alone = not job.network and bool(job.hosts) and not self.machine.others(job.hosts)
        notes = ("ranks talk over lo, as all hosts are this one; name --iface where others may join",)
        argv = (
            *(str(self.path), *_gloo(job), "-np", str(job.world_size), "--min-np", str(elastic.fewest)),
            *(["--max-np", str(elastic.most)] if elastic.most else []),
            *("--host-discovery-script", shlex.quote(str(elastic.script.absolute())), "--slots-per-host", "1"),
            *(["--network-interfaces", "lo"] if alone else _network(job)),
            *_ssh(job),
            *job.words,
            *_without_mpi(job.program),
        )
        return Command(argv, job.environment, notes if alone else (), tags_output=True)

    def _finding(self, flavor: Flavor) -> dict[str, str]:
        """The variables with which horovodrun, which looks on PATH, finds the mpirun of `flavor`."""
        if shutil.which("mpirun", path=self.search_path) == str(flavor.path):
            return {}
        return {"PATH": f"{flavor.path.parent}{os.pathsep}{self.search_path}"}


def create(*, controller: Literal["auto", "mpi", "gloo"] = "auto") -> Horovodrun:
    path = find_program("horovodrun")
    if path is None:
        raise UserError("no horovodrun beside this Python or on PATH; scripts/install-horovod builds Horovod")
    over_gloo = controller == "gloo" or (controller == "auto" and find_program("mpirun") is None)
    return Horovodrun(path, None if over_gloo else detect(), Machine.here(), os.environ.get("PATH", os.defpath))


def _network(job: Job) -> list[str]:
    return ["--network-interfaces", job.network.interface] if job.network else []


def _ssh(job: Job) -> list[str]:
    """horovodrun has options for a port and a key, and no other words for ssh."""
    rest = list(job.ssh)
    while rest:
        if rest[0] not in {"-p", "-i"} or len(rest) < 2:
            raise UserError(
                f"horovodrun cannot give ssh the word '{rest[0]}', only -p and -i; put it into ~/.ssh/config"
            )
        del rest[:2]
    return list(job.ssh)


def _gloo(job: Job) -> list[str]:
    if job.engine != "horovod":
        raise UserError(
            f"horovodrun over Gloo starts no MPI, and each rank of --engine {job.engine} would be alone in its world; "
            "use --engine horovod"
        )
    _refuse_binding(job, "over Gloo")
    if sum(map(len, job.environment.values())) > words.LONGEST:
        raise UserError("horovodrun over Gloo writes all variables into one line, too long here; use --launcher mpirun")
    return ["--gloo"]


def _mpi(job: Job, placement: Placement, flavor: Flavor) -> list[str]:
    """horovodrun splices both texts into a line for a shell; without the first, that has options Open MPI 5 rejects.

    It adds parameters of its own, which must not be given twice: the network of messages, and words for ssh where it has any.
    """
    if flavor.name != "openmpi":
        _refuse_binding(job, f"through {flavor}")
        return ["--mpi"]
    binding = [*_openmpi.bind_to(job, placement), "--map-by", "slot"]
    parameters = [
        *_openmpi.flags(placement, flavor.version),
        *([] if job.ssh and flavor.version < (5,) else _openmpi.ssh(job, placement, flavor.version)),
        *_openmpi.control(job, flavor.version),
        *(word for name in _LEFT_OUT if name in job.forward for word in ("-x", name)),
    ]
    found = {"--binding-args": binding, "--mpi-args": parameters}
    return ["--mpi", *(f"{option}={shlex.join(words)}" for option, words in found.items() if words)]


def _refuse_binding(job: Job, how: str) -> None:
    if job.bind:
        raise UserError(f"horovodrun {how} takes no --bind; use --launcher mpirun")


def _without_mpi(program: tuple[str, ...]) -> tuple[str, ...]:
    """The program on its own, not under mpi4py: Gloo needs no MPI library, and ends a job of which a rank fails."""
    return program[:1] + program[3:] if program[1:3] == ("-m", "mpi4py") else program

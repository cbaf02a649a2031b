"""Horovod's launcher, through mpirun, or over Gloo without mpirun."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cli.hosts.hostfile import format_hosts
from cli.hosts.machine import Machine
from cli.launch import openmpi
from cli.launch.elastic import Elastic
from cli.launch.flavor import Flavor, detect, find_program
from cli.launch.job import Command, Job
from cli.launch.placement import Placement, place
from hvd_train.config import words
from hvd_train.errors import UserError

_LEFT_OUT = ("CUDA_VISIBLE_DEVICES",)
"""Variables of this shell that horovodrun does not forward to other hosts."""


@dataclass(frozen=True)
class Horovodrun:
    """Starts ranks with horovodrun, through the mpirun of `flavor`, or over Gloo if it is None.

    horovodrun forwards the whole environment of the shell to every host.
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
            raise UserError("--launcher horovodrun cannot use a SLURM allocation; give --hosts, or use --launcher srun")
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
        """Return the command of an elastic job, which runs over Gloo.

        To find a network, horovodrun needs a second host.
        """
        alone = not job.network and bool(job.hosts) and not self.machine.others(job.hosts)
        notes = ("ranks use the interface lo, because all hosts are this machine; give --iface if others may join",)
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
        """Return the variables with which horovodrun finds the mpirun of `flavor` on PATH."""
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
    """Return the options for ssh; horovodrun supports only a port and a key."""
    rest = list(job.ssh)
    while rest:
        if rest[0] not in {"-p", "-i"} or len(rest) < 2:
            raise UserError(f"horovodrun passes only -p and -i to ssh, not '{rest[0]}'; use ~/.ssh/config")
        del rest[:2]
    return list(job.ssh)


def _gloo(job: Job) -> list[str]:
    if job.engine != "horovod":
        raise UserError(
            f"horovodrun over Gloo does not start MPI: each rank of --engine {job.engine} would be in a world of size 1; "
            "use --engine horovod"
        )
    _refuse_binding(job, "over Gloo")
    if sum(map(len, job.environment.values())) > words.LONGEST:
        raise UserError(
            "horovodrun over Gloo passes all variables in one line, which would be too long; use --launcher mpirun"
        )
    return ["--gloo"]


def _mpi(job: Job, placement: Placement, flavor: Flavor) -> list[str]:
    """Return the options that horovodrun inserts into the command line of mpirun.

    Without `--binding-args`, horovodrun uses options that Open MPI 5 rejects. It adds the
    parameters for the network between ranks and for the options of ssh itself, and they must not be
    given twice.
    """
    if flavor.name != "openmpi":
        _refuse_binding(job, f"through {flavor}")
        return ["--mpi"]
    binding = [*openmpi.bind_to(job, placement), "--map-by", "slot"]
    parameters = [
        *openmpi.flags(placement, flavor.version),
        *([] if job.ssh and flavor.version < (5,) else openmpi.ssh(job, placement, flavor.version)),
        *openmpi.control(job, flavor.version),
        *(word for name in _LEFT_OUT if name in job.forward for word in ("-x", name)),
    ]
    options = {"--binding-args": binding, "--mpi-args": parameters}
    return ["--mpi", *(f"{option}={shlex.join(words)}" for option, words in options.items() if words)]


def _refuse_binding(job: Job, how: str) -> None:
    if job.bind:
        raise UserError(f"horovodrun {how} does not support --bind; use --launcher mpirun")


def _without_mpi(program: tuple[str, ...]) -> tuple[str, ...]:
    """Return the program without `-m mpi4py`: over Gloo, a failed rank ends the job anyway."""
    return program[:1] + program[3:] if program[1:3] == ("-m", "mpi4py") else program

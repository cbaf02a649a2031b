"""How a job reaches its other hosts: the network, the ssh client and the forwarded variables."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cli.hosts import network
from cli.hosts.hostfile import Host
from cli.hosts.machine import Machine
from cli.hosts.network import Network
from cli.launch.job import Job
from cli.remote import forwarded
from cli.remote.ssh import PLAIN, Client
from hvd_train.errors import UserError

_OF_MPIRUN = ("PRTE_MCA_plm_ssh_args", "OMPI_MCA_plm_rsh_args")
"""Variables with ssh arguments for mpirun of Open MPI 5 and 4."""


@dataclass(frozen=True)
class Reach:
    """How a job reaches the hosts `others`, which are all but this machine.

    Ranks there receive the variables of this shell that `forward` names. `notes` are remarks for
    the user.
    """

    others: tuple[Host, ...] = ()
    network: Network | None = None
    client: Client = PLAIN
    forward: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to(self, hosts: Collection[Host]) -> Reach:
        """Return the reach of a job on `hosts` alone."""
        return replace(self, others=tuple(host for host in self.others if host in hosts))

    def onto(self, job: Job) -> Job:
        """Return `job` with the network, variables and ssh arguments that reach the other hosts."""
        return replace(job, network=self.network, forward=(*job.forward, *self.forward), ssh=self.client.args)


def reach(
    hosts: Sequence[Host],
    machine: Machine,
    *,
    iface: str | None = None,
    ssh_args: str | None = None,
    forward: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
    by_interface: bool = False,
) -> Reach:
    """Return how `machine` reaches the other `hosts`.

    `forward` names variables that the user forwards. With `by_interface`, the launcher knows a
    network only by the name of an interface, which must be equal on all hosts.
    """
    others = tuple(machine.others(hosts))
    found = network.named(iface) if iface else network.between(host.name for host in others)
    if found and by_interface:
        found = Network(found.interface)
    if not others:
        return Reach(network=found, forward=tuple(forward))
    variables = forwarded.select(environment)
    arguments = (*_login(others), *words("--ssh-args", ssh_args), *_mpirun_arguments(environment))
    return Reach(
        others,
        found,
        Client(arguments, variables),
        tuple(dict.fromkeys([*forward, *variables])),
        tuple(_secret_notes(environment, forward)),
    )


def _secret_notes(environment: Mapping[str, str], forward: Sequence[str]) -> Iterator[str]:
    """Yield a note on the variables that are not forwarded because they look secret."""
    names = [name for name in forwarded.secrets(environment) if name not in forward]
    if names:
        yield (
            "not forwarded to other hosts, because the name suggests a secret: "
            f"{', '.join(names)}; -x {names[0]} forwards it"
        )


def scratch(hosts: Sequence[Host], machine: Machine) -> Path | None:
    """Return the folder for files that rank 0 writes and this command reads.

    If rank 0 runs on another host, it is the working directory, which hosts share more often than
    /tmp. Otherwise None stands for the temporary folder.
    """
    return Path.cwd() if machine.allocation or machine.others(hosts[:1]) else None


def words(option: str, text: str | None) -> tuple[str, ...]:
    """Split the value of an option into the arguments of another program."""
    try:
        return tuple(shlex.split(text or ""))
    except ValueError as error:
        raise UserError(f"{option}: cannot split '{text}' into words: {error}") from None


def _mpirun_arguments(environment: Mapping[str, str]) -> list[str]:
    """Return the ssh arguments that the user has set for mpirun."""
    return next((environment[name].split() for name in _OF_MPIRUN if name in environment), [])


def _login(others: Sequence[Host]) -> list[str]:
    """Return the ssh arguments for user and port.

    UserError if hosts have different ones, because launchers use the same ssh arguments for all
    hosts.
    """
    logins = {tuple(host.login.items()): host.name for host in others}
    if len(logins) > 1:
        (first, one), (second, other) = [
            (" ".join(f"{k}={v}" for k, v in login), name) for login, name in logins.items()
        ][:2]
        raise UserError(
            f"{one} has {first or 'no user or port'} and {other} has {second or 'none'}; launchers use one login for all "
            "hosts: set them in ~/.ssh/config instead"
        )
    options = {"user": "-l", "port": "-p"}
    return [word for login in logins for key, value in login for word in (options[key], value)]

"""How the other hosts of a job are reached: by which network, with which ssh, and what of this shell goes along."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cli import forwarded, network
from cli.hosts import Host
from cli.launchers.base import Job
from cli.machine import Machine
from cli.network import Network
from cli.ssh import PLAIN, Client
from hvd_train.errors import UserError

_OF_MPIRUN = ("PRTE_MCA_plm_ssh_args", "OMPI_MCA_plm_rsh_args")
"""In these, users tell mpirun of Open MPI 5 and 4 what to give ssh."""


@dataclass(frozen=True)
class Reach:
    """`others` are the hosts that are not this machine; `forward` names the variables that ranks there get from this shell."""

    others: tuple[Host, ...] = ()
    network: Network | None = None
    client: Client = PLAIN
    forward: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def onto(self, job: Job) -> Job:
        """`job` as it has to be to reach them."""
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
    """The way to those of `hosts` that are not `machine`; `forward` is what the user asks for, and goes along in any case.

    `by_interface`: the launcher knows networks by the name of an interface alone, which must then be that on every host.
    """
    others = tuple(machine.others(hosts))
    found = network.named(iface) if iface else network.between(host.name for host in others)
    if found and by_interface:
        found = Network(found.interface)
    if not others:
        return Reach(network=found, forward=tuple(forward))
    taken = forwarded.chosen(environment)
    secret = [name for name in forwarded.secrets(environment) if name not in forward]
    names = ", ".join(secret)
    notes = (
        (f"not handed to other hosts, as the name says that it is secret: {names}; -x {secret[0]} does",)
        if secret
        else ()
    )
    return Reach(
        others,
        found,
        Client((*_login(others), *words("--ssh-args", ssh_args), *_told(environment)), taken),
        tuple(dict.fromkeys([*forward, *taken])),
        notes,
    )


def scratch(hosts: Sequence[Host], machine: Machine) -> Path | None:
    """Where to make a folder that rank 0 writes to: here, where it is likelier to be shared than in /tmp, if it is elsewhere."""
    return Path.cwd() if machine.allocation or machine.others(hosts[:1]) else None


def words(option: str, text: str | None) -> tuple[str, ...]:
    """The words of an option whose value is part of another program's command line."""
    try:
        return tuple(shlex.split(text or ""))
    except ValueError as error:
        raise UserError(f"{option}: '{text}' is no list of words ({error})") from None


def _told(environment: Mapping[str, str]) -> list[str]:
    return next((environment[name].split() for name in _OF_MPIRUN if name in environment), [])


def _login(others: Sequence[Host]) -> list[str]:
    """User and port for ssh; UserError where hosts have different ones, which launchers cannot tell their ssh."""
    logins = {tuple(host.login.items()): host.name for host in others}
    if len(logins) > 1:
        (first, one), (second, other) = [
            (" ".join(f"{k}={v}" for k, v in login), name) for login, name in logins.items()
        ][:2]
        raise UserError(
            f"{one} has {first or 'no user or port'} and {other} has {second or 'none'}; launchers give one to all hosts: "
            "name them in ~/.ssh/config instead"
        )
    options = {"user": "-l", "port": "-p"}
    return [word for login in logins for key, value in login for word in (options[key], value)]

"""The address on which a rank listens.

It is loopback if all ranks share a network stack, else an address in a network that joins the
hosts.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Interface, ip_address, ip_network
from pathlib import Path
from typing import Any

import psutil

from hvd_train.errors import UserError

LOOPBACK = "127.0.0.1"
_CHOSEN = ("OMPI_MCA_btl_tcp_if_include", "MPIR_CVAR_NEMESIS_TCP_NETWORK_IFACE", "HOROVOD_GLOO_IFACE")
"""The variables that pass `--iface` to the ranks of Open MPI, MPICH, and Horovod over Gloo."""
Facts = dict[str, Any]
"""The location of a rank: `host`, network `stack`, and addresses `at` with prefixes."""


def chosen(environment: Mapping[str, str] = os.environ) -> str:
    """Return the interfaces or subnets of `--iface`, as launchers pass them to ranks."""
    return next((environment[name] for name in _CHOSEN if name in environment), "")


def facts(network: str = "") -> Facts:
    """Return the location of this rank.

    `network` lists interfaces or subnets, separated by commas. Addresses outside of them are left
    out if any is inside.
    """
    interfaces = list(_interfaces())
    wanted = [address for name, address in interfaces if _is_in(name, address, network)]
    addresses = wanted or [address for _, address in interfaces]
    return {"host": socket.gethostname(), "stack": _stack(), "at": [str(address) for address in addresses]}


def own(rank: int, ranks: Sequence[Facts]) -> str:
    """Return the address on which `rank` listens, from the locations of all `ranks`.

    UserError if others do not reach it. It lies in the first network in which all hosts have an
    address of their own. If there is none, as between routed networks, it is the address from which
    this host sends to the others.
    """
    stacks = [_stack_id(location) for location in ranks]
    if len(set(stacks)) == 1:
        return LOOPBACK
    joined = common(stacks, [[IPv4Interface(a) for a in location["at"]] for location in ranks])
    if joined:
        return joined[rank]
    mine = {str(IPv4Interface(a).ip) for a in ranks[rank]["at"]}
    others = (
        str(IPv4Interface(a).ip)
        for r, stack in zip(ranks, stacks, strict=True)
        if stack != stacks[rank]
        for a in r["at"]
    )
    routed = (_source(other) for other in others if other not in mine)
    address = next((source for source in routed if source in mine), None)
    if address is None:
        hosts = ", ".join(sorted({location["host"] for location in ranks} - {ranks[rank]["host"]}))
        raise UserError(
            f"{ranks[rank]['host']} has no network in common with {hosts or 'the other hosts'} and no route to them; "
            "expected an IPv4 network that joins the hosts of the job (ddl run --iface names one)"
        )
    return address


def common(stacks: Sequence[str], at: Sequence[Sequence[IPv4Interface]]) -> list[str] | None:
    """Return each rank's address in a network that joins all ranks; None if there is none.

    It is the first network of rank 0 in which every rank has an address and ranks of different
    `stacks` have different ones. A bridge such as docker0, which has the same address on every
    host, joins none.
    """
    for network in [address.network for address in at[0]]:
        inside = [next((str(a.ip) for a in addresses if a.ip in network), None) for addresses in at]
        joined = [address for address in inside if address]
        if len(joined) == len(at) and len(set(joined)) == len(set(stacks)):
            return joined
    return None


def _stack_id(location: Facts) -> str:
    return str(location["stack"])


def _stack() -> list[Any]:
    """Identify the network stack of this process.

    Ranks with the same one reach each other over loopback. A network namespace has a unique number
    on one running kernel only, and two hosts may have the same name.
    """
    try:
        namespace = os.stat("/proc/self/ns/net")
        return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), namespace.st_dev, namespace.st_ino]
    except OSError:
        return [socket.gethostname()]


def _interfaces() -> Iterator[tuple[str, IPv4Interface]]:
    """Yield the interfaces that are up, without loopback and link-local addresses."""
    states = psutil.net_if_stats()
    for name, addresses in psutil.net_if_addrs().items():
        for a in addresses:
            if a.family is socket.AF_INET and a.netmask and name in states and states[name].isup:
                address = IPv4Interface(f"{a.address}/{a.netmask}")
                if not (address.is_loopback or address.is_link_local):
                    yield name, address


def _is_in(name: str, address: IPv4Interface, network: str) -> bool:
    for wanted in filter(None, network.split(",")):
        try:
            if address.ip in ip_network(wanted, strict=False):
                return True
        except ValueError:
            if wanted == name:
                return True
    return False


def _source(host: str) -> str | None:
    """Return the address from which packets to `host` leave; None if there is no route."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((str(ip_address(host)), 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None

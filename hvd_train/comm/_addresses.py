"""The address at which a rank listens: loopback where no rank is elsewhere, else the one in the network that joins the hosts."""

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
"""The variables in which Open MPI, MPICH and Horovod over Gloo tell their ranks what `--iface` has told them."""
Facts = dict[str, Any]
"""What one rank tells the others of where it is; JSON can carry it."""


def chosen(environment: Mapping[str, str] = os.environ) -> str:
    """The interfaces or subnets that `--iface` names, as launchers tell their ranks; empty where none was named."""
    return next((environment[name] for name in _CHOSEN if name in environment), "")


def facts(network: str = "") -> Facts:
    """This rank's: its host, what it has in common with ranks that reach it over loopback, and its addresses with prefixes.

    `network` lists interfaces or subnets, separated by commas, to which the addresses are confined where it knows any.
    """
    found = [(name, address) for name, address in _interfaces()]
    wanted = [address for name, address in found if _is_in(name, address, network)]
    addresses = wanted or [address for _, address in found]
    return {"host": socket.gethostname(), "stack": _stack(), "at": [str(address) for address in addresses]}


def own(rank: int, ranks: Sequence[Facts]) -> str:
    """The address at which `rank` listens, of what all `ranks` have told; UserError where others do not reach it.

    It is in the first network that all hosts have an address of their own in. Where there is none, as between routed networks,
    it is the address from which this host sends to the others.
    """
    if len({_place(told) for told in ranks}) == 1:
        return LOOPBACK
    joined = common([_place(told) for told in ranks], [[IPv4Interface(a) for a in told["at"]] for told in ranks])
    if joined:
        return joined[rank]
    mine = {str(IPv4Interface(a).ip) for a in ranks[rank]["at"]}
    others = (str(IPv4Interface(a).ip) for told in ranks if _place(told) != _place(ranks[rank]) for a in told["at"])
    routed = (_source(other) for other in others if other not in mine)
    address = next((source for source in routed if source in mine), None)
    if address is None:
        hosts = ", ".join(sorted({told["host"] for told in ranks} - {ranks[rank]["host"]}))
        raise UserError(
            f"{ranks[rank]['host']} has no network in common with {hosts or 'the other hosts'} and no route to them; "
            "expected an IPv4 network that joins the hosts of the job (ddl run --iface names one)"
        )
    return address


def common(places: Sequence[str], at: Sequence[Sequence[IPv4Interface]]) -> list[str] | None:
    """Each rank's address in the first network of rank 0's in which each of `places` has another address; None: there is none.

    A bridge such as docker0, which has the same address on every host, joins none of them.
    """
    for network in [address.network for address in at[0]]:
        inside = [next((str(a.ip) for a in addresses if a.ip in network), None) for addresses in at]
        found = [address for address in inside if address]
        if len(found) == len(at) and len(set(found)) == len(set(places)):
            return found
    return None


def _place(told: Facts) -> str:
    return str(told["stack"])


def _stack() -> list[Any]:
    """Names the network stack of this process: ranks with the same one reach each other over loopback.

    The number of a network namespace is unique on one running kernel only, and host names need not differ.
    """
    try:
        namespace = os.stat("/proc/self/ns/net")
        return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), namespace.st_dev, namespace.st_ino]
    except OSError:
        return [socket.gethostname()]


def _interfaces() -> Iterator[tuple[str, IPv4Interface]]:
    """Name and address of this machine's interfaces that are up, without loopback."""
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
    """The address that packets to `host` would leave from; none is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((str(ip_address(host)), 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None

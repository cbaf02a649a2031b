"""The network that joins the hosts of a job: the one that this machine's routes to them take."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, ip_network

import psutil

from hvd_train.errors import UserError, nearest


@dataclass(frozen=True)
class Network:
    """An `interface` of this machine and, where hosts may call theirs otherwise, the `subnet` it is in."""

    interface: str
    subnet: IPv4Network | None = None

    def __str__(self) -> str:
        return str(self.subnet or self.interface)


def interfaces() -> dict[str, IPv4Interface]:
    """This machine's, by name, with their first IPv4 address; without the loopback and those that are down."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    found = ((name, next(_addresses(name), None)) for name in psutil.net_if_addrs() if name in up)
    return {name: address for name, address in found if address and not address.is_loopback}


def between(hosts: Iterable[str]) -> Network | None:
    """The network by which all of `hosts`, which are others, are reached; None where there is not one for all."""
    taken = {_source(host) for host in hosts}
    found = [(name, address) for name, address in interfaces().items() if {str(address.ip)} == taken]
    return Network(found[0][0], found[0][1].network) if found else None


def named(text: str) -> Network:
    """The network of `--iface`: an interface, or a subnet such as 10.1.0.0/16."""
    here = interfaces()
    if "/" not in text:
        if text not in here:
            raise UserError(f"--iface: no interface '{text}' that is up here{nearest(text, here)}")
        return Network(text)
    try:
        subnet = ip_network(text)
    except ValueError:
        raise UserError(f"--iface: '{text}' is no subnet; expected one such as 10.1.0.0/16, or an interface") from None
    inside = [name for name, address in here.items() if address.ip in subnet]
    if not inside or not isinstance(subnet, IPv4Network):
        listed = ", ".join(f"{name} {address}" for name, address in here.items())
        raise UserError(f"--iface: no interface in {text} here (there are: {listed or 'none'})")
    return Network(inside[0], subnet)


def _addresses(interface: str) -> Iterator[IPv4Interface]:
    for address in psutil.net_if_addrs()[interface]:
        if address.family is socket.AF_INET and address.netmask:
            yield IPv4Interface(f"{address.address}/{address.netmask}")


def _source(host: str) -> str | None:
    """The address that packets to `host` would leave from; none is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None

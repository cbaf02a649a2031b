"""Find the network between the hosts of a job: the one of this machine's routes to them."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, ip_network

import psutil

from hvd_train.errors import UserError, nearest


@dataclass(frozen=True)
class Network:
    """An interface of this machine. `subnet` is None if all hosts have the same interface name."""

    interface: str
    subnet: IPv4Network | None = None

    def __str__(self) -> str:
        return str(self.subnet or self.interface)


def interfaces() -> dict[str, IPv4Interface]:
    """Return the first IPv4 address of each interface that is up, except the loopback interface."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    first = ((name, next(_addresses(name), None)) for name in psutil.net_if_addrs() if name in up)
    return {name: address for name, address in first if address and not address.is_loopback}


def between(hosts: Iterable[str]) -> Network | None:
    """Return the network on the routes to all `hosts`, which are other machines.

    Return None if the routes use several networks.
    """
    sources = {_source(host) for host in hosts}
    matching = [(name, address) for name, address in interfaces().items() if {str(address.ip)} == sources]
    return Network(matching[0][0], matching[0][1].network) if matching else None


def named(text: str) -> Network:
    """Return the network of `--iface`, an interface or a subnet such as 10.1.0.0/16.

    UserError if it is not here.
    """
    here = interfaces()
    if "/" not in text:
        if text not in here:
            raise UserError(f"--iface: no interface '{text}' is up on this machine{nearest(text, here)}")
        return Network(text)
    try:
        subnet = ip_network(text)
    except ValueError:
        raise UserError(
            f"--iface: '{text}' is not a subnet; expected a subnet such as 10.1.0.0/16, or an interface"
        ) from None
    inside = [name for name, address in here.items() if address.ip in subnet]
    if not inside or not isinstance(subnet, IPv4Network):
        listed = ", ".join(f"{name} {address}" for name, address in here.items())
        raise UserError(f"--iface: no interface of this machine is in {text} (interfaces: {listed or 'none'})")
    return Network(inside[0], subnet)


def _addresses(interface: str) -> Iterator[IPv4Interface]:
    for address in psutil.net_if_addrs()[interface]:
        if address.family is socket.AF_INET and address.netmask:
            yield IPv4Interface(f"{address.address}/{address.netmask}")


def _source(host: str) -> str | None:
    """Return the source address of packets to `host`, without sending any."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None

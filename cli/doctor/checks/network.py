"""Network interfaces, the default route, and bridges that MPI may confuse with another host."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path

import psutil

from cli.doctor.base import Check, Finding


@dataclass(frozen=True)
class Interface:
    """One IPv4 address of an active interface.

    `bridge` is True for a local bridge such as docker0.
    """

    name: str
    address: IPv4Interface
    bridge: bool

    def __str__(self) -> str:
        return f"{self.name} {self.address}"


def create() -> Check:
    return Check(lambda: judge(interfaces(), _route()), distinct={"bridges": iface_option(interfaces(), _route())})


def judge(found: Sequence[Interface], route: str | None) -> Finding:
    """Judge the interfaces. `route` is the interface of the default route."""
    facts = {
        "interfaces": [str(i) for i in found],
        "bridges": [str(i.address.ip) for i in found if i.bridge],
        "default": route,
    }
    if not found:
        return Finding("ok", "only the loopback interface: ranks can run on this machine only", facts=facts)
    listed = ", ".join(map(str, found))
    pairs = [(a, b) for a, b in itertools.combinations(found, 2) if (a.bridge or b.bridge) and _overlap(a, b)]
    if pairs:
        a, b = pairs[0]
        figure = f"{a} and {b} are in one subnet: MPI may hang on the wrong one"
        return Finding("warning", figure, f"remove one, or name the right one: {iface_option(found, route)}", facts)
    return Finding("ok", f"{listed}; {f'default route over {route}' if route else 'no default route'}", facts=facts)


def iface_option(found: Sequence[Interface], route: str | None) -> str:
    """Return the command with the interface that most likely connects the hosts."""
    return f"ddl run --iface {route or next((i.name for i in found if not i.bridge), 'NAME')}"


def interfaces() -> list[Interface]:
    up = {name for name, stats in psutil.net_if_stats().items() if "up" in stats.flags.split(",")}
    return [
        Interface(name, IPv4Interface(f"{a.address}/{a.netmask}"), (Path("/sys/class/net") / name / "bridge").exists())
        for name, addresses in psutil.net_if_addrs().items()
        for a in addresses
        if name in up and a.family is socket.AF_INET and not a.address.startswith("127.")
    ]


def default_route(table: str) -> str | None:
    """Return the interface of the default route with the lowest metric.

    `table` is the text of /proc/net/route.
    """
    rows = (line.split() for line in table.splitlines()[1:])
    routes = [(int(row[6]), row[0]) for row in rows if row[1] == row[7] == "00000000"]
    return min(routes)[1] if routes else None


def _route() -> str | None:
    return default_route(Path("/proc/net/route").read_text(encoding="ascii"))


def _overlap(a: Interface, b: Interface) -> bool:
    return a.name != b.name and a.address.network.overlaps(b.address.network)

"""What keeps a job from running on its hosts, from what they say of themselves."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface
from textwrap import indent
from typing import Any, Literal

from cli.columns import columns
from cli.network import Network

MIB = 2**20
ROOM = 64 * MIB
"""Free bytes below which a folder that the job writes to is full."""
MEMORY = 256 * MIB
"""Available bytes for each rank below which it most likely ends in the kernel's out-of-memory killer."""
SKEW = 2.0
"""Seconds between clocks from which files and logs of different hosts cannot be put in order."""

_CSH = {"csh", "tcsh"}
_OTHER_SHELLS = {"elvish", "fish", "nu", "pwsh", "xonsh"}
"""Login shells that read neither what sh reads nor what csh does."""

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """An error keeps the job from running; a warning is told and no more."""

    level: Literal["error", "warning"]
    host: str
    what: str
    remedy: str


def problems(here: Facts, there: Facts, host: str, ranks: int, network: Network | None) -> Iterator[Problem]:
    """Those of `host`, which is to have `ranks`; the first to mend comes first."""
    for what, remedy in (
        *_shell(here, there),
        *_environment(here, there, host),
        *_code(here, there, host),
        *_paths(there, host),
        *_network(there, network),
        *_room(there),
    ):
        yield Problem("error", host, what, remedy)
    if there["memory"] < ranks * MEMORY:
        what = f"{there['memory'] // MIB} MiB of memory are available for {ranks} ranks"
        yield Problem("warning", host, what, "end what else runs there, or start fewer ranks")
    more = [name for name in there["variables"] if name not in here["variables"]]
    if more:
        what = f"a login script there sets {', '.join(more)}, and this shell does not"
        yield Problem("warning", host, what, f"take it out there, or let all ranks have it: -x {more[0]}=VALUE")
    if abs(there["skew"]) > SKEW:
        yield Problem(
            "warning", host, f"its clock is {there['skew']:+.0f} s off", "let it follow a time server (chrony)"
        )


def skew(time: float, earliest: float, latest: float) -> float:
    """How far a clock is off that showed `time` at some moment between two of ours."""
    return min(time - earliest, 0.0) + max(time - latest, 0.0)


def namesakes(found: Mapping[str, Facts]) -> Iterator[Problem]:
    """Hosts that call themselves the same: Open MPI takes them for one, and its ranks wait for ever when they start."""
    first: dict[str, str] = {}
    for host, facts in found.items():
        other = first.setdefault(facts["name"], host)
        if other == host:
            continue
        if facts["machine"] == found[other]["machine"]:
            yield Problem(
                "error", host, f"it is {other}, under another name", "give it one line, with the slots of both"
            )
        else:
            what = f"its hostname is '{facts['name']}', as that of {other}: Open MPI takes them for one"
            yield Problem("error", host, what, "give it a name of its own: hostnamectl set-hostname NAME")


def clashes(found: Mapping[str, Facts], network: Network | None) -> Iterator[Problem]:
    """Addresses that two hosts have: bridges such as docker0, on which MPI waits for ever."""
    owners: dict[str, list[str]] = defaultdict(list)
    for host, facts in found.items():
        for name, address in _addresses(facts):
            if network is None or _is_in(network, name, address):
                owners[f"{address.ip} ({name})"].append(host)
    for owned, hosts in owners.items():
        if len(hosts) > 1:
            level: Literal["error", "warning"] = "error" if network else "warning"
            what = f"{owned} is also an address of {', '.join(hosts[:-1])}"
            yield Problem(level, hosts[-1], what, "name the interface that joins the hosts: --iface")


def _environment(here: Facts, there: Facts, host: str) -> Iterator[tuple[str, str]]:
    if there["python"] != here["python"]:
        yield f"Python {there['python']}, and {here['python']} here", f"install the same at {sys.prefix}"
    for package, version in here["packages"].items():
        other = there["packages"][package]
        if other != version:
            pip = f"ssh {host} {sys.executable} -m pip"
            remedy = f"{pip} install {package}=={version}" if version else f"{pip} uninstall {package}"
            yield f"{package} {other or 'is missing'}, and {version or 'none'} here", remedy
    if there["mpi"] != here["mpi"]:
        yield f"mpi4py loads '{there['mpi']}', and '{here['mpi']}' here", "install the same MPI there"


def _shell(here: Facts, there: Facts) -> Iterator[tuple[str, str]]:
    """mpirun starts its daemons by a line that sh reads, or csh where csh is the login shell here."""
    mine, its = here["shell"], there["shell"]
    if its in _OTHER_SHELLS or (its in _CSH) != (mine in _CSH):
        right = "bash" if mine in _OTHER_SHELLS else mine
        yield (
            f"its login shell is {its}, and {mine} here: mpirun cannot start ranks through it",
            f"chsh -s $(which {right})",
        )


def _code(here: Facts, there: Facts, host: str) -> Iterator[tuple[str, str]]:
    if there["code"] != here["code"]:
        yield "ddl's code is not the same as here", f"install the same ddl there, or copy it: rsync -a ... {host}:"
    for path, digest in here["files"].items():
        if there["files"][path] != digest:
            state = "is missing" if there["files"][path] is None else "is not the same as here"
            yield f"{path} {state}", f"rsync -aR {path} {host}:/"


def _paths(there: Facts, host: str) -> Iterator[tuple[str, str]]:
    for path, exists in there["paths"].items():
        if not exists:
            yield f"no {path}", f"copy or mount it there: rsync -aR {path} {host}:/"


def _network(there: Facts, network: Network | None) -> Iterator[tuple[str, str]]:
    if network is None or there["addresses"] is None:
        return
    has = _addresses(there)
    if not any(_is_in(network, name, address) for name, address in has):
        listed = ", ".join(f"{name} {address}" for name, address in has) or "none"
        yield f"no interface in {network} (its own: {listed})", "name the network that all hosts are in: --iface"


def _addresses(facts: Facts) -> list[tuple[str, IPv4Interface]]:
    return [(name, IPv4Interface(text)) for name, text in facts["addresses"] or ()]


def _is_in(network: Network, name: str, address: IPv4Interface) -> bool:
    return address.ip in network.subnet if network.subnet else name == network.interface


def _room(there: Facts) -> Iterator[tuple[str, str]]:
    for folder, free in there["free"].items():
        if free < ROOM:
            yield f"{free // MIB} MiB are free in {folder}", f"make room in {folder}"


def table(found: Sequence[Problem]) -> str:
    """A line for each: host, what is wrong, and what mends it."""
    rows = [("host", "problem", "what to do"), *((p.host, p.what, p.remedy) for p in found)]
    return indent(columns(rows), "  ")

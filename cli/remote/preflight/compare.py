"""Compare the facts of hosts and find the problems that prevent a job from running there."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface
from textwrap import indent
from typing import Any, Literal

from cli.hosts.network import Network
from cli.output.columns import columns

MIB = 2**20
ROOM = 64 * MIB
"""Free bytes below which a folder that the job writes to counts as full."""
MEMORY = 256 * MIB
"""Available bytes per rank below which the kernel's out-of-memory killer most likely ends ranks."""
SKEW = 2.0
"""Seconds of clock skew above which files and logs of different hosts cannot be ordered in time."""

_CSH = {"csh", "tcsh"}
_OTHER_SHELLS = {"elvish", "fish", "nu", "pwsh", "xonsh"}
"""Login shells that understand neither the syntax of sh nor that of csh."""

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class HostProblem:
    """A problem of a host. An error prevents the job from running there; a warning does not."""

    level: Literal["error", "warning"]
    host: str
    what: str
    remedy: str


def problems(here: Facts, there: Facts, host: str, ranks: int, network: Network | None) -> Iterator[HostProblem]:
    """Yield the problems of `host`, which is to run `ranks` ranks, in the order to fix them."""
    for what, remedy in (
        *_shell(here, there),
        *_environment(here, there, host),
        *_code(here, there, host),
        *_paths(there, host),
        *_network(there, network),
        *_room(there),
    ):
        yield HostProblem("error", host, what, remedy)
    if there["memory"] < ranks * MEMORY:
        what = f"{there['memory'] // MIB} MiB of memory are available for {ranks} ranks"
        yield HostProblem("warning", host, what, "end other programs there, or start fewer ranks")
    more = [name for name in there["variables"] if name not in here["variables"]]
    if more:
        what = f"a login script there sets {', '.join(more)}, which this shell does not"
        yield HostProblem("warning", host, what, f"remove it there, or set it for all ranks: -x {more[0]}=VALUE")
    if abs(there["skew"]) > SKEW:
        yield HostProblem(
            "warning", host, f"its clock is {there['skew']:+.0f} s off", "synchronise it with a time server (chrony)"
        )


def skew(time: float, earliest: float, latest: float) -> float:
    """Return the least error in seconds of a clock that showed `time` at some moment.

    The moment lay between `earliest` and `latest` of the clock here.
    """
    return min(time - earliest, 0.0) + max(time - latest, 0.0)


def namesakes(found: Mapping[str, Facts]) -> Iterator[HostProblem]:
    """Yield hosts that share a hostname.

    Open MPI treats them as one host, and its ranks hang at start.
    """
    first: dict[str, str] = {}
    for host, facts in found.items():
        other = first.setdefault(facts["name"], host)
        if other == host:
            continue
        if facts["machine"] == found[other]["machine"]:
            yield HostProblem(
                "error", host, f"it is {other} under another name", "list it once, with the slots of both"
            )
        else:
            what = f"its hostname '{facts['name']}' is also that of {other}: Open MPI treats them as one host"
            yield HostProblem("error", host, what, "set a unique hostname: hostnamectl set-hostname NAME")


def clashes(found: Mapping[str, Facts], network: Network | None) -> Iterator[HostProblem]:
    """Yield addresses of two hosts, such as docker0 bridges have: MPI hangs if it uses them."""
    owners: dict[str, list[str]] = defaultdict(list)
    for host, facts in found.items():
        for name, address in _addresses(facts):
            if network is None or _is_in(network, name, address):
                owners[f"{address.ip} ({name})"].append(host)
    for owned, hosts in owners.items():
        if len(hosts) > 1:
            level: Literal["error", "warning"] = "error" if network else "warning"
            what = f"{owned} is also an address of {', '.join(hosts[:-1])}"
            yield HostProblem(level, hosts[-1], what, "name the interface that connects the hosts: --iface")


def _environment(here: Facts, there: Facts, host: str) -> Iterator[tuple[str, str]]:
    if there["python"] != here["python"]:
        yield f"Python {there['python']}, but {here['python']} here", f"install the same at {sys.prefix}"
    for package, version in here["packages"].items():
        other = there["packages"][package]
        if other != version:
            pip = f"ssh {host} {sys.executable} -m pip"
            remedy = f"{pip} install {package}=={version}" if version else f"{pip} uninstall {package}"
            yield f"{package} {other or 'is missing'}, but {version or 'none'} here", remedy
    if there["mpi"] != here["mpi"]:
        yield f"mpi4py loads '{there['mpi']}', but '{here['mpi']}' here", "install the same MPI there"


def _shell(here: Facts, there: Facts) -> Iterator[tuple[str, str]]:
    """Compare login shells.

    mpirun starts its daemons by a line in the syntax of sh, or of csh if csh is the login shell
    here.
    """
    mine, its = here["shell"], there["shell"]
    if its in _OTHER_SHELLS or (its in _CSH) != (mine in _CSH):
        right = "bash" if mine in _OTHER_SHELLS else mine
        yield (
            f"its login shell is {its}, but {mine} here: mpirun cannot start ranks through it",
            f"chsh -s $(which {right})",
        )


def _code(here: Facts, there: Facts, host: str) -> Iterator[tuple[str, str]]:
    if there["code"] != here["code"]:
        yield (
            "the code of ddl differs from the code here",
            f"install the same ddl there, or copy it: rsync -a ... {host}:",
        )
    for path, digest in here["files"].items():
        if there["files"][path] != digest:
            state = "is missing" if there["files"][path] is None else "differs from the file here"
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
        yield f"no interface in {network} (its own: {listed})", "name a network that all hosts share: --iface"


def _addresses(facts: Facts) -> list[tuple[str, IPv4Interface]]:
    return [(name, IPv4Interface(text)) for name, text in facts["addresses"] or ()]


def _is_in(network: Network, name: str, address: IPv4Interface) -> bool:
    return address.ip in network.subnet if network.subnet else name == network.interface


def _room(there: Facts) -> Iterator[tuple[str, str]]:
    for folder, free in there["free"].items():
        if free < ROOM:
            yield f"{free // MIB} MiB are free in {folder}", f"free space in {folder}"


def table(found: Sequence[HostProblem]) -> str:
    """Return a table with host, problem and remedy of each problem."""
    rows = [("host", "problem", "what to do"), *((p.host, p.what, p.remedy) for p in found)]
    return indent(columns(rows), "  ")

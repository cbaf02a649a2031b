"""Resolve the names in a hostfile, and find the problems that their addresses show."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Literal

from cli.hosts.hostfile import Line

SECONDS = 20
"""Time limit for all names together.

A name service that does not answer can take as long for each name.
"""
AT_ONCE = 64
"""Names that are resolved at the same time."""
OWN_SECONDS = 5
"""Time limit for all names before a job starts, to decide which of them are this machine."""
_CACHE: dict[str, tuple[str, ...]] = {}


@dataclass(frozen=True)
class Lookup:
    """The addresses of a name, or the reason why it has none."""

    addresses: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class HostfileProblem:
    """A problem of a hostfile. An error means that a host cannot be used under its name."""

    level: Literal["warning", "error"]
    text: str


@dataclass
class ListedHost:
    """A host of a hostfile, with all of its lines."""

    slots: int = 0
    lines: list[int] = field(default_factory=list)
    answer: Lookup = Lookup()


def entries(lines: Iterable[Line], seconds: float | None = SECONDS) -> dict[str, ListedHost]:
    """Return the hosts by name, in the order of the file.

    Resolving all names takes at most `seconds`; None resolves none.
    """
    hosts: dict[str, ListedHost] = defaultdict(ListedHost)
    for line in lines:
        hosts[line.host.name].slots += line.host.slots
        hosts[line.host.name].lines.append(line.number)
    if seconds is not None:
        for name, answer in resolve(hosts, seconds).items():
            hosts[name].answer = answer
    return dict(hosts)


def resolve(names: Iterable[str], seconds: float) -> dict[str, Lookup]:
    """Resolve all names in parallel, within `seconds`."""
    pool = ThreadPoolExecutor(AT_ONCE)
    futures = {name: pool.submit(_resolve_one, name) for name in names}
    wait(futures.values(), timeout=seconds)
    pool.shutdown(wait=False, cancel_futures=True)
    return {name: _answer(future, seconds) for name, future in futures.items()}


def look_up(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the addresses by name, empty for an unknown name.

    This process resolves each name once.
    """
    names = list(names)
    new = {name for name in names if name not in _CACHE}
    _CACHE.update({name: answer.addresses for name, answer in resolve(new, OWN_SECONDS).items()} if new else {})
    return {name: _CACHE[name] for name in names}


def problems(hosts: Mapping[str, ListedHost]) -> list[HostfileProblem]:
    """Return the problems of the hosts of a hostfile."""
    return [*_repeated(hosts), *_unknown(hosts), *_loopback(hosts), *_same(hosts)]


def _resolve_one(name: str) -> Lookup:
    try:
        infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Lookup(reason=getattr(error, "strerror", None) or str(error))
    return Lookup(tuple(dict.fromkeys(str(address[4][0]) for address in infos)))


def _answer(future: Future[Lookup], seconds: float) -> Lookup:
    if future.done() and not future.cancelled():
        return future.result()
    return Lookup(reason=f"no answer within {seconds:g} seconds")


def _repeated(hosts: Mapping[str, ListedHost]) -> list[HostfileProblem]:
    return [
        HostfileProblem(
            "warning", f"{name} is on lines {_joined(map(str, host.lines))}; its slots add up to {host.slots}"
        )
        for name, host in hosts.items()
        if len(host.lines) > 1
    ]


def _unknown(hosts: Mapping[str, ListedHost]) -> list[HostfileProblem]:
    return [
        HostfileProblem(
            "error",
            f"line {host.lines[0]}: {name} has no address: {host.answer.reason}; correct it, or add it to /etc/hosts",
        )
        for name, host in hosts.items()
        if host.answer.reason
    ]


def _loopback(hosts: Mapping[str, ListedHost]) -> list[HostfileProblem]:
    """Return a problem for each loopback address, which is a different machine on every host."""
    wrong = ((n, h) for n, h in hosts.items() if any(_is_loopback(address) for address in h.answer.addresses))
    return [
        HostfileProblem(
            "warning",
            f"line {host.lines[0]}: {name} is {host.answer.addresses[0]}, which every other host takes for itself; "
            "give its network address, in /etc/hosts or in the hostfile",
        )
        for name, host in wrong
        if len(hosts) > 1
    ]


def _same(hosts: Mapping[str, ListedHost]) -> list[HostfileProblem]:
    names: dict[str, list[str]] = defaultdict(list)
    for name, host in hosts.items():
        for address in host.answer.addresses:
            names[address].append(name)
    return [
        HostfileProblem("warning", f"{_joined(same)} are the same machine ({address}); give it one line with all slots")
        for address, same in names.items()
        if len(same) > 1 and not _is_loopback(address)
    ]


def _is_loopback(address: str) -> bool:
    return ip_address(address.partition("%")[0]).is_loopback


def _joined(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last

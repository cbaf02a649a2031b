"""The addresses of hosts, and what they say against a hostfile."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Literal

from cli.hosts import Line

SECONDS = 20
"""For all names together; name services that do not answer take as long for each."""
AT_ONCE = 64
OWN_SECONDS = 5
"""For all names together where the question is whether they are this machine: a job does not start before."""
_FOUND: dict[str, tuple[str, ...]] = {}


@dataclass(frozen=True)
class Answer:
    """Addresses of a name, or why it has none."""

    addresses: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Problem:
    """An error is a host that cannot be used as it is written."""

    level: Literal["warning", "error"]
    text: str


@dataclass
class Entry:
    """A host of a hostfile, all of its lines together."""

    slots: int = 0
    lines: list[int] = field(default_factory=list)
    answer: Answer = Answer()


def entries(lines: Iterable[Line], seconds: float | None = SECONDS) -> dict[str, Entry]:
    """By name, in the order of the file; names are looked up for at most `seconds`, and not at all by None."""
    found: dict[str, Entry] = defaultdict(Entry)
    for line in lines:
        found[line.host.name].slots += line.host.slots
        found[line.host.name].lines.append(line.number)
    if seconds is not None:
        for name, answer in resolve(found, seconds).items():
            found[name].answer = answer
    return dict(found)


def resolve(names: Iterable[str], seconds: float) -> dict[str, Answer]:
    pool = ThreadPoolExecutor(AT_ONCE)
    asked = {name: pool.submit(_look_up, name) for name in names}
    wait(asked.values(), timeout=seconds)
    pool.shutdown(wait=False, cancel_futures=True)
    return {name: _answer(future, seconds) for name, future in asked.items()}


def look_up(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Addresses by name, none of a name that has none; each name is looked up once in the life of this process."""
    names = list(names)
    new = {name for name in names if name not in _FOUND}
    _FOUND.update({name: answer.addresses for name, answer in resolve(new, OWN_SECONDS).items()} if new else {})
    return {name: _FOUND[name] for name in names}


def problems(hosts: Mapping[str, Entry]) -> list[Problem]:
    return [*_repeated(hosts), *_unknown(hosts), *_loopback(hosts), *_same(hosts)]


def _look_up(name: str) -> Answer:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Answer(reason=getattr(error, "strerror", None) or str(error))
    return Answer(tuple(dict.fromkeys(str(address[4][0]) for address in found)))


def _answer(future: Future[Answer], seconds: float) -> Answer:
    if future.done() and not future.cancelled():
        return future.result()
    return Answer(reason=f"no answer within {seconds:g} seconds")


def _repeated(hosts: Mapping[str, Entry]) -> list[Problem]:
    return [
        Problem("warning", f"{name} is on lines {_joined(map(str, host.lines))}: its slots add up to {host.slots}")
        for name, host in hosts.items()
        if len(host.lines) > 1
    ]


def _unknown(hosts: Mapping[str, Entry]) -> list[Problem]:
    return [
        Problem(
            "error",
            f"line {host.lines[0]}: no address of {name}: {host.answer.reason}; correct it, or add it to /etc/hosts",
        )
        for name, host in hosts.items()
        if host.answer.reason
    ]


def _loopback(hosts: Mapping[str, Entry]) -> list[Problem]:
    """Of several hosts, none may be called by an address that means another machine on each."""
    wrong = ((n, h) for n, h in hosts.items() if any(_is_loopback(address) for address in h.answer.addresses))
    return [
        Problem(
            "warning",
            f"line {host.lines[0]}: {name} is {host.answer.addresses[0]}, where every other host finds itself; "
            "give its address in the network, in /etc/hosts or in the hostfile",
        )
        for name, host in wrong
        if len(hosts) > 1
    ]


def _same(hosts: Mapping[str, Entry]) -> list[Problem]:
    names: dict[str, list[str]] = defaultdict(list)
    for name, host in hosts.items():
        for address in host.answer.addresses:
            names[address].append(name)
    return [
        Problem("warning", f"{_joined(same)} are one machine ({address}); give it one line with the slots of all")
        for address, same in names.items()
        if len(same) > 1 and not _is_loopback(address)
    ]


def _is_loopback(address: str) -> bool:
    return ip_address(address.partition("%")[0]).is_loopback


def _joined(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last

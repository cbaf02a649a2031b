"""Hostfile text <-> tuple[Host, ...], in the dialects of Open MPI, MPICH (Hydra) and Horovod."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from hvd_train.errors import UserError, nearest

Dialect = Literal["openmpi", "mpich", "horovod"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

MOST_SLOTS = 999_999
_KEYS = ("slots", "max_slots", "max-slots", "binding", "ifname")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[\w.-]+)?", re.ASCII)
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::(.*))?", re.DOTALL)
_LISTED = 8


@dataclass(frozen=True)
class Host:
    """A machine and the number of ranks that may run on it."""

    name: str
    slots: int

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.name

    def __str__(self) -> str:
        return f"[{self.name}]:{self.slots}" if self.is_ipv6 else f"{self.name}:{self.slots}"


@dataclass(frozen=True)
class Line:
    """A line of a hostfile; `unused` are the settings that no other dialect knows, such as max_slots."""

    number: int
    host: Host
    unused: tuple[str, ...] = ()


def parse_hosts(text: str, where: str) -> tuple[Host, ...]:
    """Hosts of `h1:4,h2:4`; a name without slots has one. `where` begins the message of a UserError."""
    pairs = (_split(entry.strip(), where) for entry in text.split(","))
    return merge(Host(name, _slots(slots, where)) for name, slots in pairs)


def read_hostfile(path: Path, option: str) -> tuple[Host, ...]:
    """Hosts of the file at `path`; a UserError where it cannot be read begins with `option`."""
    return parse_hostfile(read(path, option), str(path))


def read(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option}: {path} cannot be read: {error}") from None


def parse_hostfile(text: str, path: str) -> tuple[Host, ...]:
    """Hosts of a file in any of the three dialects, in order; slots of a host named twice add up.

    A host without slots has one. Open MPI's max_slots and Hydra's binding and ifname are accepted and not used.
    UserError names `path` and line.
    """
    return merge(line.host for line in parse_lines(text, path))


def parse_lines(text: str, path: str) -> tuple[Line, ...]:
    """The lines of a hostfile that name a host, as they stand; UserError as of `parse_hostfile`."""
    numbered = ((number, line.partition("#")[0]) for number, line in enumerate(text.split("\n"), 1))
    lines = tuple(_line(line, number, path) for number, line in numbered if line.strip())
    if not lines:
        raise UserError(f"{path}: no host in this file; expected a line for each, as n1 slots=4")
    return lines


def merge(hosts: Iterable[Host]) -> tuple[Host, ...]:
    """Each host once, in order, with the slots that it has in all."""
    slots: dict[str, int] = {}
    for host in hosts:
        slots[host.name] = slots.get(host.name, 0) + host.slots
    return tuple(Host(name, count) for name, count in slots.items())


def format_hosts(hosts: Iterable[Host]) -> str:
    """`h1:4,h2:4`: what `parse_hosts` reads."""
    return ",".join(map(str, hosts))


def format_hostfile(hosts: Iterable[Host], dialect: Dialect) -> str:
    """A hostfile with one line for each host."""
    lines = (str(h) if dialect == "mpich" else f"{h.name} slots={h.slots}" for h in hosts)
    return "".join(f"{line}\n" for line in lines)


def check_slots(hosts: tuple[Host, ...], ranks: int) -> None:
    """UserError where the hosts have fewer slots than `ranks`: how many are missing, and who has how many."""
    slots = sum(host.slots for host in hosts)
    if slots >= ranks:
        return
    listed = ", ".join(f"{host.name}: {host.slots}" for host in hosts[:_LISTED])
    more = f", and {len(hosts) - _LISTED} hosts more" if len(hosts) > _LISTED else ""
    raise UserError(
        f"{ranks} ranks need {ranks} slots and the hosts have {slots}, {ranks - slots} too few ({listed}{more}); "
        f"give the hosts more slots, ask for --np {slots}, or let ranks share cores with --oversubscribe"
    )


def stretch(hosts: tuple[Host, ...], ranks: int) -> tuple[Host, ...]:
    """The hosts with enough slots for `ranks`, those that are missing spread in proportion to those there are."""
    slots = sum(host.slots for host in hosts)
    if slots >= ranks:
        return hosts
    stretched, seen = [], 0
    for host in hosts:
        first, seen = ranks * seen // slots, seen + host.slots
        stretched.append(Host(host.name, ranks * seen // slots - first))
    return tuple(stretched)


def _line(line: str, number: int, path: str) -> Line:
    """The host of `n1`, `n1:4` or `n1 slots=4 max_slots=8`."""
    where = f"{path}:{number}"
    first, *words = re.sub(r"\s*=\s*", "=", line).split()
    name, slots = _split(first, where)
    settings = _settings(words, where)
    if slots is not None and "slots" in settings:
        raise UserError(f"{where}: slots given twice, in '{first}' and as slots={settings['slots']}; give them once")
    unused = tuple(f"{key}={value}" for key, value in settings.items() if key != "slots")
    return Line(number, Host(name, _slots(settings.get("slots", slots), where)), unused)


def _settings(words: list[str], where: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in _KEYS:
            raise UserError(f"{where}: '{word}' is no key=value setting of a host{nearest(key, _KEYS)}")
        if key in values:
            raise UserError(f"{where}: {key} given twice; give it once")
        values[key] = value
    return values


def _split(entry: str, where: str) -> tuple[str, str | None]:
    """Name and slots of `n1`, `n1:4`, `fe80::1` or `[fe80::1]:4`."""
    bracketed = _BRACKETED.fullmatch(entry)
    if bracketed:
        pattern, name, slots = _ADDRESS, bracketed[1], bracketed[2]
    elif entry.count(":") > 1:
        pattern, name, slots = _ADDRESS, entry, None
    else:
        pattern, (name, *rest) = _NAME, entry.split(":")
        slots = rest[0] if rest else None
    if not pattern.fullmatch(name):
        raise UserError(f"{where}: '{entry}' is no host; expected a name or an address, as n1, n1:4 or [fe80::1]:4")
    return name, slots


def _slots(text: str | None, where: str) -> int:
    if text is None:
        return 1
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) == 0:
        raise UserError(f"{where}: '{text}' is no number of slots; expected a whole number from 1 to {MOST_SLOTS}")
    return int(text)

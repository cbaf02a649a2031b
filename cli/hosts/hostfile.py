"""Parse and format hostfiles in the dialects of Open MPI, MPICH (Hydra) and Horovod."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from cli.hosts import notation
from hvd_train.errors import UserError, nearest

Dialect = Literal["openmpi", "mpich", "horovod"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

MOST_SLOTS = 999_999
MOST_HOSTS = 100_000
_KEYS = ("slots", "max_slots", "max-slots", "user", "port", "binding", "ifname")
_KEPT = {"slots", "user", "port"}
_LOGIN: dict[Dialect, tuple[str, ...]] = {"openmpi": ("user", "port"), "mpich": ("user",), "horovod": ()}
"""The settings for ssh that a hostfile of each dialect may contain."""
_SPAN = r"[0-9]{1,9}(?:-[0-9]{1,9})?"
_NAME = re.compile(rf"[A-Za-z0-9_](?:[A-Za-z0-9_.-]|\[{_SPAN}(?:,{_SPAN})*\])*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[\w.-]+)?", re.ASCII)
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::(.*))?", re.DOTALL)
_LISTED = 8


@dataclass(frozen=True)
class Host:
    """A machine and its slots, the number of ranks that may run on it.

    `user` and `port` are for ssh.
    """

    name: str
    slots: int
    user: str = ""
    port: int | None = None

    @property
    def is_ipv6(self) -> bool:
        """True if the name is an IPv6 address."""
        return ":" in self.name

    @property
    def login(self) -> dict[str, str]:
        """The given settings among `user` and `port`."""
        return {key: str(value) for key, value in {"user": self.user, "port": self.port}.items() if value}

    def __str__(self) -> str:
        return f"[{self.name}]:{self.slots}" if self.is_ipv6 else f"{self.name}:{self.slots}"


@dataclass(frozen=True)
class Line:
    """One host of a line; `unused` are the settings that ddl does not use, such as max_slots."""

    number: int
    host: Host
    unused: tuple[str, ...] = ()


def parse_hosts(text: str, where: str) -> tuple[Host, ...]:
    """Parse hosts such as `h1:4,me@n[01-16]:4`; a name without slots has one slot.

    UserError for an invalid host; its message begins with `where`.
    """
    parts = (_split(entry.strip(), where) for entry in _entries(text))
    return merge(Host(name, _slots(slots, where), user) for user, names, slots in parts for name in names)


def given_hosts(text: str | None, file: Path | None) -> tuple[Host, ...]:
    """Return the hosts of --hosts or --hostfile, none if neither is given.

    UserError if both are given.
    """
    if text is not None and file is not None:
        raise UserError("--hosts and --hostfile both name the hosts; give one of them")
    if text is not None:
        return parse_hosts(text, "--hosts")
    return read_hostfile(file, "--hostfile") if file is not None else ()


def read_hostfile(path: Path, option: str) -> tuple[Host, ...]:
    """Return the hosts in the file at `path`.

    UserError if it cannot be read, with `option` in the message.
    """
    return parse_hostfile(read(path, option), str(path))


def read(path: Path, option: str) -> str:
    """Return the text of the file at `path`.

    UserError if it cannot be read, with `option` in the message.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"{option}: {path} cannot be read: {reason}") from None


def parse_hostfile(text: str, path: str) -> tuple[Host, ...]:
    """Return the hosts of a hostfile of any dialect, in order.

    A host without slots has one slot, and the slots of a host on several lines add up. Open MPI's
    max_slots and Hydra's binding and ifname are accepted but not used. UserError names `path` and
    the line.
    """
    return merge(line.host for line in parse_lines(text, path))


def parse_lines(text: str, path: str) -> tuple[Line, ...]:
    """Return the hosts of each line, not merged; UserError as in `parse_hostfile`."""
    numbered = ((number, line.partition("#")[0]) for number, line in enumerate(text.split("\n"), 1))
    lines = tuple(host for number, line in numbered if line.strip() for host in _line(line, number, path))
    if not lines:
        raise UserError(f"{path}: no host in this file; expected one line per host, such as n1 slots=4")
    return lines


def merge(hosts: Iterable[Host]) -> tuple[Host, ...]:
    """Return each host once, in order, with the sum of its slots.

    The first entry of a host determines its user and port.
    """
    merged: dict[str, Host] = {}
    for host in hosts:
        first = merged.get(host.name)
        merged[host.name] = replace(first, slots=first.slots + host.slots) if first else host
    return tuple(merged.values())


def format_hosts(hosts: Iterable[Host]) -> str:
    """Return `h1:4,h2:4`, the format of `parse_hosts`."""
    return ",".join(map(str, hosts))


def format_hostfile(hosts: Iterable[Host], dialect: Dialect) -> str:
    """Return a hostfile with one line per host."""
    return "".join(f"{' '.join(_words(host, dialect))}\n" for host in hosts)


def lost(host: Host, dialect: Dialect) -> tuple[str, ...]:
    """Return the settings of `host` that a hostfile of `dialect` cannot express."""
    return tuple(f"{key}={value}" for key, value in host.login.items() if key not in _LOGIN[dialect])


def check_slots(hosts: tuple[Host, ...], ranks: int) -> None:
    """Raise UserError if the hosts have fewer slots than `ranks`.

    The message has the missing slots and the slots of each host.
    """
    slots = sum(host.slots for host in hosts)
    if slots >= ranks:
        return
    listed = ", ".join(f"{host.name}: {host.slots}" for host in hosts[:_LISTED])
    more = f", and {len(hosts) - _LISTED} more hosts" if len(hosts) > _LISTED else ""
    raise UserError(
        f"{ranks} ranks need {ranks} slots but the hosts have {slots}, {ranks - slots} too few ({listed}{more}); "
        f"give the hosts more slots, use --np {slots}, or let ranks share cores with --oversubscribe"
    )


def stretch(hosts: tuple[Host, ...], ranks: int) -> tuple[Host, ...]:
    """Return the hosts with slots for all `ranks`.

    The missing slots are added in proportion to the existing ones.
    """
    slots = sum(host.slots for host in hosts)
    if slots >= ranks:
        return hosts
    stretched, seen = [], 0
    for host in hosts:
        first, seen = ranks * seen // slots, seen + host.slots
        stretched.append(replace(host, slots=ranks * seen // slots - first))
    return tuple(stretched)


def _line(line: str, number: int, path: str) -> Iterator[Line]:
    """Yield the hosts of `n1`, `n1:4`, `n[1-3]:4` or `n1 slots=4 max_slots=8 user=me port=2222`."""
    where = f"{path}:{number}"
    first, *words = re.sub(r"\s*=\s*", "=", line).split()
    user, names, slots = _split(first, where)
    settings = _settings(words, where)
    if slots is not None and "slots" in settings:
        raise UserError(
            f"{where}: slots are given twice, in '{first}' and as slots={settings['slots']}; give them once"
        )
    if user and "user" in settings:
        raise UserError(f"{where}: user is given twice, in '{first}' and as user={settings['user']}; give it once")
    unused = tuple(f"{key}={value}" for key, value in settings.items() if key not in _KEPT)
    count, login = _slots(settings.get("slots", slots), where), user or _user(settings.get("user"), where)
    for name in names:
        yield Line(number, Host(name, count, login, _port(settings.get("port"), where)), unused)


def _settings(words: list[str], where: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in _KEYS:
            raise UserError(f"{where}: '{word}' is not a key=value setting of a host{nearest(key, _KEYS)}")
        if key in values:
            raise UserError(f"{where}: {key} is given twice; give it once")
        values[key] = value
    return values


def _entries(text: str) -> list[str]:
    """Split `text` at the commas outside of brackets."""
    return re.split(r",(?![^\[\]]*\])", text)


def _split(entry: str, where: str) -> tuple[str, list[str], str | None]:
    """Return user, names and slots of `n1`, `n1:4`, `me@n[01-16]:4`, `fe80::1` or `[fe80::1]:4`."""
    user, _, place = entry.rpartition("@")
    bracketed = _BRACKETED.fullmatch(place)
    if bracketed:
        pattern, name, slots = _ADDRESS, bracketed[1], bracketed[2]
    elif place.count(":") > 1:
        pattern, name, slots = _ADDRESS, place, None
    else:
        pattern, (name, *rest) = _NAME, place.split(":")
        slots = rest[0] if rest else None
    if not pattern.fullmatch(name) or (user and not _USER.fullmatch(user)) or entry.startswith("@"):
        raise UserError(
            f"{where}: '{entry}' is not a host; expected a name or an address, such as n1, n1:4, me@n1:4, n[01-16]:4 "
            "or [fe80::1]:4"
        )
    return user, _expanded(name, where) if pattern is _NAME else [name], slots


def _expanded(name: str, where: str) -> list[str]:
    """Return the names of `n[01-16]`.

    UserError if a range ends before it begins, or for too many names.
    """
    many = 1
    for listed in re.findall(r"\[([^\]]*)\]", name):
        spans = [item.partition("-") for item in listed.split(",")]
        sizes = [int(last or first) - int(first) + 1 for first, _, last in spans]
        if min(sizes) < 1:
            raise UserError(
                f"{where}: '{name}' has a range that ends before it begins; expected a range such as n[01-16]"
            )
        many *= sum(sizes)
    if many > MOST_HOSTS:
        raise UserError(f"{where}: '{name}' is {many} hosts; expected at most {MOST_HOSTS}")
    return list(notation.expand(name))


def _user(text: str | None, where: str) -> str:
    if text is not None and not _USER.fullmatch(text):
        raise UserError(f"{where}: '{text}' is not a user; expected a name, such as user=me")
    return text or ""


def _port(text: str | None, where: str) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise UserError(f"{where}: '{text}' is not a port; expected a number from 1 to 65535, such as port=2222")
    return int(text)


def _words(host: Host, dialect: Dialect) -> Iterator[str]:
    yield str(host) if dialect == "mpich" else f"{host.name} slots={host.slots}"
    yield from (f"{key}={value}" for key, value in host.login.items() if key in _LOGIN[dialect])


def _slots(text: str | None, where: str) -> int:
    if text is None:
        return 1
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) == 0:
        raise UserError(f"{where}: '{text}' is not a number of slots; expected a whole number from 1 to {MOST_SLOTS}")
    return int(text)

"""Hostfile text <-> tuple[Host, ...], in the dialects of Open MPI, MPICH (Hydra) and Horovod."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from cli.slurm import notation
from hvd_train.errors import UserError, nearest

Dialect = Literal["openmpi", "mpich", "horovod"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

MOST_SLOTS = 999_999
MOST_HOSTS = 100_000
_KEYS = ("slots", "max_slots", "max-slots", "user", "port", "binding", "ifname")
_KEPT = {"slots", "user", "port"}
_LOGIN: dict[Dialect, tuple[str, ...]] = {"openmpi": ("user", "port"), "mpich": ("user",), "horovod": ()}
"""What the hostfiles of a dialect may say of how ssh logs in."""
_SPAN = r"[0-9]{1,9}(?:-[0-9]{1,9})?"
_NAME = re.compile(rf"[A-Za-z0-9_](?:[A-Za-z0-9_.-]|\[{_SPAN}(?:,{_SPAN})*\])*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[\w.-]+)?", re.ASCII)
_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::(.*))?", re.DOTALL)
_LISTED = 8


@dataclass(frozen=True)
class Host:
    """A machine, the number of ranks that may run on it, and how ssh logs in there, where that is not as usual."""

    name: str
    slots: int
    user: str = ""
    port: int | None = None

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.name

    @property
    def login(self) -> dict[str, str]:
        """The settings `user` and `port` of a hostfile, where they are given."""
        return {key: str(value) for key, value in {"user": self.user, "port": self.port}.items() if value}

    def __str__(self) -> str:
        return f"[{self.name}]:{self.slots}" if self.is_ipv6 else f"{self.name}:{self.slots}"


@dataclass(frozen=True)
class Line:
    """A line of a hostfile; `unused` are the settings that no other dialect knows, such as max_slots."""

    number: int
    host: Host
    unused: tuple[str, ...] = ()


def parse_hosts(text: str, where: str) -> tuple[Host, ...]:
    """Hosts of `h1:4,me@n[01-16]:4`; a name without slots has one. `where` begins the message of a UserError."""
    found = (_split(entry.strip(), where) for entry in _entries(text))
    return merge(Host(name, _slots(slots, where), user) for user, names, slots in found for name in names)


def given(text: str | None, file: Path | None) -> tuple[Host, ...]:
    """Hosts of the options --hosts and --hostfile, none where neither is given; UserError where both are."""
    if text is not None and file is not None:
        raise UserError("--hosts and --hostfile both say where to run; give one of them")
    if text is not None:
        return parse_hosts(text, "--hosts")
    return read_hostfile(file, "--hostfile") if file is not None else ()


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
    lines = tuple(found for number, line in numbered if line.strip() for found in _line(line, number, path))
    if not lines:
        raise UserError(f"{path}: no host in this file; expected a line for each, as n1 slots=4")
    return lines


def merge(hosts: Iterable[Host]) -> tuple[Host, ...]:
    """Each host once, in order, with the slots that it has in all, logged in to as its first line says."""
    found: dict[str, Host] = {}
    for host in hosts:
        before = found.get(host.name)
        found[host.name] = replace(before, slots=before.slots + host.slots) if before else host
    return tuple(found.values())


def format_hosts(hosts: Iterable[Host]) -> str:
    """`h1:4,h2:4`: what `parse_hosts` reads."""
    return ",".join(map(str, hosts))


def format_hostfile(hosts: Iterable[Host], dialect: Dialect) -> str:
    """A hostfile with one line for each host."""
    return "".join(f"{' '.join(_words(host, dialect))}\n" for host in hosts)


def lost(host: Host, dialect: Dialect) -> tuple[str, ...]:
    """The settings of `host` that a hostfile of `dialect` has no place for."""
    return tuple(f"{key}={value}" for key, value in host.login.items() if key not in _LOGIN[dialect])


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
        stretched.append(replace(host, slots=ranks * seen // slots - first))
    return tuple(stretched)


def _line(line: str, number: int, path: str) -> Iterator[Line]:
    """The hosts of `n1`, `n1:4`, `n[1-3]:4` or `n1 slots=4 max_slots=8 user=me port=2222`."""
    where = f"{path}:{number}"
    first, *words = re.sub(r"\s*=\s*", "=", line).split()
    user, names, slots = _split(first, where)
    settings = _settings(words, where)
    if slots is not None and "slots" in settings:
        raise UserError(f"{where}: slots given twice, in '{first}' and as slots={settings['slots']}; give them once")
    if user and "user" in settings:
        raise UserError(f"{where}: user given twice, in '{first}' and as user={settings['user']}; give it once")
    unused = tuple(f"{key}={value}" for key, value in settings.items() if key not in _KEPT)
    count, login = _slots(settings.get("slots", slots), where), user or _user(settings.get("user"), where)
    for name in names:
        yield Line(number, Host(name, count, login, _port(settings.get("port"), where)), unused)


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


def _entries(text: str) -> list[str]:
    """What stands between commas outside of brackets."""
    return re.split(r",(?![^\[\]]*\])", text)


def _split(entry: str, where: str) -> tuple[str, list[str], str | None]:
    """User, names and slots of `n1`, `n1:4`, `me@n[01-16]:4`, `fe80::1` or `[fe80::1]:4`."""
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
            f"{where}: '{entry}' is no host; expected a name or an address, as n1, n1:4, me@n1:4, n[01-16]:4 or [fe80::1]:4"
        )
    return user, _expanded(name, where) if pattern is _NAME else [name], slots


def _expanded(name: str, where: str) -> list[str]:
    """The names of `n[01-16]`; UserError where a range ends before it begins, or there are too many."""
    many = 1
    for listed in re.findall(r"\[([^\]]*)\]", name):
        spans = [item.partition("-") for item in listed.split(",")]
        sizes = [int(last or first) - int(first) + 1 for first, _, last in spans]
        if min(sizes) < 1:
            raise UserError(f"{where}: '{name}' has a range that ends before it begins; expected as n[01-16]")
        many *= sum(sizes)
    if many > MOST_HOSTS:
        raise UserError(f"{where}: '{name}' are {many} hosts; expected at most {MOST_HOSTS}")
    return list(notation.expand(name))


def _user(text: str | None, where: str) -> str:
    if text is not None and not _USER.fullmatch(text):
        raise UserError(f"{where}: '{text}' is no user; expected a name, as user=me")
    return text or ""


def _port(text: str | None, where: str) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise UserError(f"{where}: '{text}' is no port; expected a number from 1 to 65535, as port=2222")
    return int(text)


def _words(host: Host, dialect: Dialect) -> Iterator[str]:
    yield str(host) if dialect == "mpich" else f"{host.name} slots={host.slots}"
    yield from (f"{key}={value}" for key, value in host.login.items() if key in _LOGIN[dialect])


def _slots(text: str | None, where: str) -> int:
    if text is None:
        return 1
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) == 0:
        raise UserError(f"{where}: '{text}' is no number of slots; expected a whole number from 1 to {MOST_SLOTS}")
    return int(text)

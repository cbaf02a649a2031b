"""`ddl hosts`: show, check and convert a hostfile."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.arguments import options
from cli.hosts.hostfile import DIALECTS
from cli.output.streams import say
from hvd_train.errors import UserError
from hvd_train.text import strict_json

if TYPE_CHECKING:
    from cli.hosts.addresses import HostfileProblem, ListedHost
    from cli.hosts.hostfile import Dialect, Line

SHOWN = 20
"""Largest number of problems to print; a name service that is down makes a problem of every host.
"""


def command(
    hostfile: Annotated[Path, typer.Argument(help="Hostfile in any dialect.", show_default=False)],
    to: Annotated[
        str | None,
        options.choice("--to", "dialect", DIALECTS, help="Format to convert to.", rich_help_panel=options.OUTPUT),
    ] = None,
    as_json: options.Json = False,
    resolve: Annotated[bool, typer.Option(help="Resolve the names.", rich_help_panel=options.NETWORK)] = True,
) -> None:
    """Show, check and convert a hostfile; exit code 1 if a host cannot be used."""
    from cli.hosts import addresses
    from cli.hosts.hostfile import parse_lines, read

    if to is not None and as_json:
        raise UserError("--to and --json both select the output; give one of them")
    lines = parse_lines(read(hostfile, "hosts"), str(hostfile))
    converted = None if to is None else _converted(lines, to)
    hosts = addresses.entries(lines, addresses.SECONDS if resolve else None)
    problems = addresses.problems(hosts)
    print(_json(hosts, problems) if as_json else converted or _table(hosts))
    if not as_json:
        _print_problems(hostfile, problems)
    sys.exit(any(problem.level == "error" for problem in problems))


def _converted(lines: Sequence[Line], dialect: str) -> str:
    """Return the hosts in `dialect`, and print the settings that it cannot express on stderr."""
    from cli.hosts.hostfile import format_hostfile, lost, merge

    chosen: Dialect = dialect  # type: ignore[assignment]
    unused = [f"{word} of line {line.number}" for line in lines for word in (*line.unused, *lost(line.host, chosen))]
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        say(f"left out, because ddl does not use it: {', '.join(unused[:3])}{more}")
    return format_hostfile(merge(line.host for line in lines), chosen).rstrip("\n")


def _table(hosts: Mapping[str, ListedHost]) -> str:
    width = max(4, *map(len, hosts))
    return "\n".join([f"{'host':{width}}  slots  line  address", *_rows(hosts, width), _total(hosts)])


def _rows(hosts: Mapping[str, ListedHost], width: int) -> Iterator[str]:
    for name, host in hosts.items():
        lines, address = ",".join(map(str, host.lines)), ", ".join(host.answer.addresses)
        yield f"{name:{width}}  {host.slots:5}  {lines:4}  {address}".rstrip()


def _total(hosts: Mapping[str, ListedHost]) -> str:
    slots, many = sum(host.slots for host in hosts.values()), len(hosts)
    return f"{many} host{'s' * (many > 1)}, {slots} slot{'s' * (slots > 1)}"


def _print_problems(hostfile: Path, problems: Sequence[HostfileProblem]) -> None:
    for problem in problems[:SHOWN]:
        say(f"{problem.level}: {hostfile}: {problem.text}")
    if len(problems) > SHOWN:
        say(f"and {len(problems) - SHOWN} more problems; --json lists all")


def _json(hosts: Mapping[str, ListedHost], problems: Sequence[HostfileProblem]) -> str:
    from dataclasses import asdict

    entries = [
        {"host": name, "slots": host.slots, "lines": host.lines, "addresses": host.answer.addresses}
        for name, host in hosts.items()
    ]
    slots = sum(host.slots for host in hosts.values())
    return strict_json.dumps({"hosts": entries, "slots": slots, "problems": [asdict(p) for p in problems]}, indent=1)

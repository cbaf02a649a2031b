"""`ddl doctor`: what keeps ranks from running, here or on the hosts of a job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options

if TYPE_CHECKING:
    from cli.diagnose.base import Finding, Line, Wanted
    from cli.hosts import Host

Say = Callable[[str], None]


def command(
    hostfile: options.Hostfile = None,
    as_json: options.Json = False,
    run: Annotated[
        bool,
        typer.Option(
            "--run", help="Reduce with each launcher and engine, on all hosts or two ranks: bandwidth and latency."
        ),
    ] = False,
    ssh_args: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Words for ssh to the other hosts, as '-p 2222 -J bastion'.")
    ] = None,
) -> None:
    """Say what keeps ranks from running, and the command that mends it; exit code 1 where there is an error."""
    from cli.diagnose._report import to_json
    from cli.hosts import read_hostfile

    hosts = read_hostfile(hostfile, "--hostfile") if hostfile else ()
    lines = list(_examine(hosts, run, ssh_args, (lambda _: None) if as_json else typer.echo))
    if as_json:
        print(to_json(lines))
    sys.exit(any(line.finding.level == "error" for line in lines))


def _examine(hosts: tuple[Host, ...], run: bool, ssh_args: str | None, say: Say) -> Iterator[Line]:
    from cli.diagnose._places import Here
    from cli.diagnose._report import text
    from cli.diagnose._trial import trials
    from cli.diagnose.base import Line
    from hvd_train import plugins

    here = Here()
    found = here.examine({name: {} for name in plugins.names("cli.diagnose")})
    for check, finding in found.items():
        line = Line(here.name, check, finding)
        say(text(line))
        yield line
    if hosts:
        yield from _elsewhere(hosts, found, ssh_args, say)
    for name, finding in trials(hosts, ssh_args) if run else ():
        line = Line(here.name, f"run {name}", finding)
        say(text(line))
        yield line


def _elsewhere(hosts: tuple[Host, ...], here: dict[str, Finding], ssh_args: str | None, say: Say) -> Iterator[Line]:
    """Lines of the other hosts; what is well there is in the table alone."""
    from cli.diagnose import _hosts, _report
    from cli.diagnose._places import load, survey
    from cli.machine import Machine
    from cli.reach import reach

    wanted: Wanted = {name: {} for name in here if load(name).on_hosts}
    found = survey(hosts, wanted, here, reach(hosts, Machine.here(), ssh_args=ssh_args).client)
    say(f"\n{_report.table(found)}\n")
    for line in _hosts.lines(found, here):
        if line.finding.level != "ok":
            say(_report.text(line, named=True))
        yield line

"""`ddl doctor`: find what prevents ranks from running, on this machine or on the hosts of a job."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from cli.arguments import options

if TYPE_CHECKING:
    from cli.doctor.base import Finding, Row, Selection
    from cli.hosts.hostfile import Host

Say = Callable[[str], None]


def command(
    hostfile: options.Hostfile = None,
    as_json: options.Json = False,
    run: Annotated[
        bool,
        typer.Option(
            "--run",
            rich_help_panel=options.START,
            help="Also run an all-reduce with each launcher and engine, on all hosts or on two ranks.",
        ),
    ] = False,
    ssh_args: options.SshArgs = None,
) -> None:
    """Check what ranks need, and print a remedy for each problem; exit code 1 for an error."""
    from cli.doctor.report import to_json
    from cli.hosts.hostfile import read_hostfile

    hosts = read_hostfile(hostfile, "--hostfile") if hostfile else ()
    lines = list(_examine(hosts, run, ssh_args, (lambda _: None) if as_json else typer.echo))
    if as_json:
        print(to_json(lines))
    sys.exit(any(line.finding.level == "error" for line in lines))


def _examine(hosts: tuple[Host, ...], run: bool, ssh_args: str | None, say: Say) -> Iterator[Row]:
    from cli.doctor.base import Row
    from cli.doctor.examine import examine
    from cli.doctor.report import text
    from cli.doctor.trial import trials
    from hvd_train.config import plugins

    here = os.uname().nodename
    own = examine({name: {} for name in plugins.names("cli.doctor.checks")})
    for check, finding in own.items():
        line = Row(here, check, finding)
        say(text(line))
        yield line
    if hosts:
        yield from _examine_others(hosts, own, ssh_args, say)
    for name, finding in trials(hosts, ssh_args) if run else ():
        line = Row(here, f"run {name}", finding)
        say(text(line))
        yield line


def _examine_others(hosts: tuple[Host, ...], own: dict[str, Finding], ssh_args: str | None, say: Say) -> Iterator[Row]:
    """Yield the lines of the other hosts; print a table of all hosts, and lines with problems."""
    from cli.doctor import report
    from cli.doctor.examine import examine_hosts, load
    from cli.doctor.hosts import lines
    from cli.hosts.machine import Machine
    from cli.remote.reach import reach

    selection: Selection = {name: {} for name in own if load(name).on_hosts}
    findings = examine_hosts(hosts, selection, own, reach(hosts, Machine.here(), ssh_args=ssh_args).client)
    say(f"\n{report.table(findings)}\n")
    for line in lines(findings, own):
        if line.finding.level != "ok":
            say(report.text(line, named=True))
        yield line

"""`ddl compare`: run strategies one after another, on the same data, seed and budget."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from cli.arguments import options
from cli.launch.emulation import Emulation
from cli.output import pictures
from cli.output.streams import say
from cli.runs.folder import make_new_folder
from hvd_train.errors import nearest
from hvd_train.text.names import printable


def command(
    file: Annotated[Path, typer.Argument(help="YAML file of the runs.", show_default=False)],
    overrides: options.Overrides = None,
    strategies: Annotated[
        str,
        typer.Option(
            metavar="NAME[:OPTION=VALUE]...,...",
            rich_help_panel=options.START,
            help="Strategies and their options, such as allreduce,local_sgd:period=8.",
        ),
    ] = "allreduce,local_sgd",
    np: options.NpOrTwo = None,
    hosts: options.Hosts = None,
    hostfile: options.Hostfile = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH",
            help="Length of each run: 10epochs, 500steps, 20000env_steps, 60s or 2GB.",
            show_default="that of the file",
            rich_help_panel=options.START,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC=VALUE",
            rich_help_panel=options.START,
            help="Report when each run reaches it, such as accuracy=0.95.",
            show_default="train.converge of the file",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=options.START,
            help="Runs of each strategy, with consecutive seeds.",
        ),
    ] = 1,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=options.OUTPUT,
            help="Metric of the picture.",
            show_default="that of the target, return, accuracy or loss",
        ),
    ] = None,
    engine: options.Engine = "auto",
    iface: options.Iface = None,
    ssh_args: options.SshArgs = None,
    latency_ms: options.LatencyMs = 0.0,
    gbps: options.Gbps = None,
    straggler: options.Straggler = None,
    output: options.CompareFolder = None,
    as_json: options.Json = False,
) -> None:
    """Run strategies one after another: a table, compare.json, compare.png, and run folders."""
    from cli.compare import outcome
    from cli.compare.entries import entries, goal
    from cli.compare.report import Report
    from cli.compare.series import Series
    from cli.hosts.hostfile import given_hosts
    from cli.hosts.machine import Machine
    from cli.launch.engines import choose_engine
    from cli.remote.reach import reach

    listed = given_hosts(hosts, hostfile)
    np = (sum(host.slots for host in listed) or 2) if np is None else np
    wanted = goal(target) if target is not None else None
    emulated = Emulation(latency_ms, gbps, straggler).section(np)
    folder = output or Path(f"compare-{file.stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    pictures.check("compare")
    launch = {"world_size": np, "engine": choose_engine(engine, np, alone=not listed), "emulate": emulated}
    reached = reach(listed, Machine.here(), iface=iface, ssh_args=ssh_args)
    for note in reached.notes:
        say(note)
    series = Series(
        file,
        tuple(overrides or ()),
        entries(strategies),
        budget,
        folder.absolute(),
        launch,
        listed,
        reached,
        seeds,
    )
    series.check()
    make_new_folder(folder)
    outcomes, code = series.run()
    measured = outcome.measured(outcomes)
    if wanted is None and series.goal is not None and series.goal[0] in measured:
        wanted = series.goal
    if metric is not None and metric not in measured:
        say(f"--metric: no run measured '{metric}'{nearest(metric, measured)}; the picture has another metric")
        metric = None
    report = Report(f"{file}", budget, wanted, launch, outcomes, metric)
    report.save(folder)
    print(report.json() if as_json else report.text(), end="")
    print(printable(f"{folder / 'compare.json'} and {folder / 'compare.png'} written"), file=sys.stderr)
    sys.exit(code)

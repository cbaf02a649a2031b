"""`ddl compare`: strategies one after another, on the same data, seed and budget."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from cli import emulation, options, pictures, run_folder
from hvd_train.names import printable


def command(
    file: Annotated[Path, typer.Argument(help="YAML file.", show_default=False)],
    overrides: options.Overrides = None,
    strategies: Annotated[
        str, typer.Option(metavar="NAME[:OPTION=VALUE]...,...", help="As allreduce,local_sgd:period=8.")
    ] = "allreduce,local_sgd",
    np: options.NpOrTwo = None,
    hosts: options.Hosts = None,
    hostfile: options.Hostfile = None,
    budget: Annotated[
        str | None,
        typer.Option(help="When each run ends: 10epochs, 500steps, 60s or 2GB.", show_default="as the file says"),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="METRIC=VALUE", help="Report when it is reached, as accuracy=0.95.")
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
    """Run strategies one after another: a table, compare.json, compare.png, and the folder of each run."""
    from cli.compare.entries import entries
    from cli.compare.entries import target as read_target
    from cli.compare.report import Report
    from cli.compare.series import Series
    from cli.engines import choose
    from cli.hosts import given
    from cli.machine import Machine
    from cli.reach import reach

    places = given(hosts, hostfile)
    np = (sum(host.slots for host in places) or 2) if np is None else np
    goal = read_target(target) if target is not None else None
    emulated = emulation.section(latency_ms, gbps, straggler, np)
    folder = output or Path(f"compare-{file.stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    pictures.check("compare")
    launch = {"world_size": np, "engine": choose(engine, np, alone=not places), "emulate": emulated}
    found = reach(places, Machine.here(), iface=iface, ssh_args=ssh_args)
    for note in found.notes:
        print(f"ddl: {note}", file=sys.stderr)
    series = Series(
        file,
        tuple(overrides or ()),
        entries(strategies),
        budget,
        folder.absolute(),
        launch,
        places,
        found,
    )
    series.check()
    run_folder.make_new(folder)
    outcomes, code = series.run()
    report = Report(f"{file}", budget, goal, launch, outcomes)
    report.save(folder)
    print(report.json() if as_json else report.text(), end="")
    print(printable(f"{folder / 'compare.json'} and {folder / 'compare.png'} written"), file=sys.stderr)
    sys.exit(code)

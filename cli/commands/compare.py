"""`ddl compare`: strategies one after another, on the same data, seed and budget."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from cli import emulation, pictures
from hvd_train.errors import UserError


def command(
    file: Annotated[Path, typer.Argument(help="YAML file.", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)] = None,
    strategies: Annotated[
        str, typer.Option(metavar="NAME[:OPTION=VALUE]...,...", help="As allreduce,local_sgd:period=8.")
    ] = "allreduce,local_sgd",
    np: Annotated[int | None, typer.Option("-n", "--np", help="Ranks of each run [default: all slots, or 2].")] = None,
    budget: Annotated[
        str | None, typer.Option(help="When each run ends: 10epochs, 500steps, 60s or 2GB [default: as the file says].")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="METRIC=VALUE", help="Report when it is reached, as accuracy=0.95.")
    ] = None,
    engine: Annotated[str, typer.Option(help="auto, mpi, horovod or single.")] = "auto",
    latency_ms: Annotated[float, typer.Option(help=emulation.LATENCY)] = 0.0,
    gbps: Annotated[float | None, typer.Option(help=emulation.GBPS)] = None,
    straggler: Annotated[str | None, typer.Option(metavar="RANK:FACTOR", help=emulation.STRAGGLER)] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to make [default: compare-NAME-TIME].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    hosts: Annotated[str | None, typer.Option("-H", "--hosts", help="Hosts and slots, as h1:4,h2:4.")] = None,
    hostfile: Annotated[Path | None, typer.Option(help="File of hosts: Open MPI, MPICH or Horovod dialect.")] = None,
    iface: Annotated[
        str | None, typer.Option(help="Interface or subnet that joins the hosts [default: by the route to them].")
    ] = None,
    ssh_args: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Words for ssh to the other hosts, as '-p 2222 -J bastion'.")
    ] = None,
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
    if np < 1:
        raise UserError(f"--np: expected at least 1 rank, got {np}")
    goal = read_target(target) if target is not None else None
    emulated = emulation.section(latency_ms, gbps, straggler, np)
    folder = output or Path(f"compare-{file.stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    if folder.exists():
        raise UserError(f"--output: {folder} exists; give another folder")
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
    outcomes, code = series.run()
    report = Report(f"{file}", budget, goal, launch, outcomes)
    report.save(folder)
    print(report.json() if as_json else report.text(), end="")
    print(f"{folder / 'compare.json'} and {folder / 'compare.png'} written", file=sys.stderr)
    sys.exit(code)

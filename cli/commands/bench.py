"""`ddl bench`: time ddl's engines and their peers in one run."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from cli.arguments import options
from cli.bench.cases import FAMILIES, SIZES
from cli.output import pictures
from hvd_train.errors import UserError
from hvd_train.text.names import find, printable


def command(
    what: Annotated[
        str,
        typer.Argument(
            help="What to time: allreduce, step, scaling (step on 1 to --np ranks) or horovod.", show_default=False
        ),
    ],
    np: options.NpOrTwo = None,
    hosts: options.Hosts = None,
    hostfile: options.Hostfile = None,
    variants: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Implementations to time.",
            show_default="all; scaling: local,ddl_mpi,ddp",
            rich_help_panel=options.START,
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE,...", help="allreduce: sizes in bytes.", show_default=SIZES, rich_help_panel=options.START
        ),
    ] = None,
    workloads: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="step and scaling: models to train.",
            show_default="all; scaling: mlp",
            rich_help_panel=options.START,
        ),
    ] = None,
    pairs: Annotated[
        int,
        typer.Option(
            metavar="N", rich_help_panel=options.START, help="Rounds; each round times every implementation once."
        ),
    ] = 30,
    iface: options.Iface = None,
    ssh_args: options.SshArgs = None,
    output: options.BenchFolder = None,
) -> None:
    """Time all-reduces, training steps, scaling or Horovod's API: tables, bench.json, bench.png."""
    from cli.hosts.hostfile import given_hosts
    from cli.hosts.machine import Machine
    from cli.remote.reach import reach, scratch
    from cli.runs.folder import make_new_folder

    what = find(what, FAMILIES, "bench: no measurement")
    if pairs < 1:
        raise UserError(f"--pairs: expected at least 1 round, got {pairs}")
    listed, machine = given_hosts(hosts, hostfile), Machine.here()
    np = (sum(host.slots for host in listed) or 2) if np is None else np
    pictures.check("bench")
    from cli.bench.cases import check_memory, select_cases, select_variants
    from cli.bench.launch import measure
    from hvd_train.bench.request import BenchRequest

    names, cases = select_variants(what, variants), select_cases(what, sizes, workloads)
    if what == "allreduce":
        check_memory(cases, len(names), machine.ranks_here(listed, np), machine.available_memory())
    folder = output or Path(f"bench-{what}-{time.strftime('%Y%m%d-%H%M%S')}")
    make_new_folder(folder)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    reached = reach(listed, machine, iface=iface, ssh_args=ssh_args)
    threads = max(1, machine.cores // max([host.slots for host in listed], default=np))
    with tempfile.TemporaryDirectory(prefix="ddl-bench-", dir=scratch(listed, machine)) as results:
        requests = [
            BenchRequest(FAMILIES[what], ranks, names, cases, pairs, f"{results}/{ranks}.json", columns)
            for ranks in (range(1, np + 1) if what == "scaling" else [np])
        ]
        runs = [measure(request, listed, reached, threads=threads) for request in requests]

    from cli.bench import report
    from hvd_train.text.display import console

    result = report.result(what, pairs, runs)
    report.save(result, folder)
    report.show(result, console(width=None if sys.stdout.isatty() else 140))
    print(printable(f"{folder / 'bench.json'} and {folder / 'bench.png'} written"))

"""`ddl bench`: our engines beside their peers, all in one run."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options, pictures, run_folder
from cli.streams import say
from hvd_train import plugins, strict_json
from hvd_train.errors import UserError
from hvd_train.names import find, printable

if TYPE_CHECKING:
    from cli.bench.figures import Run
    from cli.hosts import Host
    from cli.reach import Reach
    from hvd_train.bench.request import Request

FAMILIES = {"allreduce": "allreduce", "step": "step", "scaling": "step", "horovod": "api"}
SIZES = "1K,4K,16K,64K,256K,1M,4M,16M,64M,256M"
CALLS = ["1", "100"]
"""Named all-reduces in flight together, where implementations of Horovod's API are compared."""
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def command(
    what: Annotated[
        str, typer.Argument(help="allreduce, step, scaling (on 1 to --np ranks) or horovod.", show_default=False)
    ],
    np: options.NpOrTwo = None,
    hosts: options.Hosts = None,
    hostfile: options.Hostfile = None,
    variants: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="What to time.", show_default="all; scaling: local,ddl_mpi,ddp"),
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(metavar="SIZE,...", help="Bytes of an all-reduce.", show_default=SIZES)
    ] = None,
    workloads: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Models of a step.", show_default="all; scaling: mlp")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Rounds, in each of which every variant is timed.")] = 30,
    iface: options.Iface = None,
    ssh_args: options.SshArgs = None,
    output: options.BenchFolder = None,
) -> None:
    """Time all-reduces, training steps, scaling or calls of Horovod's API: tables, bench.json and bench.png."""
    from cli.hosts import given
    from cli.machine import Machine
    from cli.reach import reach, scratch

    what = find(what, FAMILIES, "bench: no measurement")
    if pairs < 1:
        raise UserError(f"--pairs: expected at least 1 round, got {pairs}")
    places, here = given(hosts, hostfile), Machine.here()
    np = (sum(host.slots for host in places) or 2) if np is None else np
    pictures.check("bench")
    from hvd_train.bench.request import Request

    names, cases = _names(what, variants), _cases(what, sizes, workloads)
    folder = output or Path(f"bench-{what}-{time.strftime('%Y%m%d-%H%M%S')}")
    run_folder.make_new(folder)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    found = reach(places, here, iface=iface, ssh_args=ssh_args)
    threads = max(1, here.cores // max([host.slots for host in places], default=np))
    with tempfile.TemporaryDirectory(prefix="ddl-bench-", dir=scratch(places, here)) as results:
        requests = [
            Request(FAMILIES[what], ranks, names, cases, pairs, f"{results}/{ranks}.json", columns)
            for ranks in (range(1, np + 1) if what == "scaling" else [np])
        ]
        measured = [_measure(request, places, found, threads=threads) for request in requests]

    from cli.bench import report
    from hvd_train.display import console

    told = report.result(what, pairs, measured)
    report.save(told, folder)
    report.show(told, console(width=None if sys.stdout.isatty() else 140))
    print(printable(f"{folder / 'bench.json'} and {folder / 'bench.png'} written"))


def _names(what: str, text: str | None) -> list[str]:
    """Those that were asked for; a step always comes with its floor."""
    known = plugins.names(f"hvd_train.bench.{FAMILIES[what]}")
    default = "local,ddl_mpi,ddp" if what == "scaling" else ",".join(known)
    chosen = _chosen("--variants", text or default, known)
    return chosen if what in ("allreduce", "horovod") else list(dict.fromkeys(["local", *chosen]))


def _cases(what: str, sizes: str | None, workloads: str | None) -> list[str]:
    """Names that the ranks understand: bytes, or a workload and an optimizer."""
    from hvd_train.bench.workloads import OPTIMIZERS, WORKLOADS

    if what == "horovod":
        if sizes is not None or workloads is not None:
            raise UserError(
                "bench horovod has neither --sizes nor --workloads; bench step times its DistributedOptimizer"
            )
        return CALLS
    if what == "allreduce":
        if workloads is not None:
            raise UserError("--workloads: bench allreduce has --sizes; workloads are for step and scaling")
        return [str(n) for n in sorted({_bytes(word) for word in (sizes or SIZES).split(",")})]
    if sizes is not None:
        raise UserError(f"--sizes: bench {what} has --workloads; sizes are for allreduce")
    scaling = what == "scaling"
    models = _chosen("--workloads", workloads or ("mlp" if scaling else ",".join(WORKLOADS)), WORKLOADS)
    return [f"{model} {name}" for model in models for name in (["AdamW"] if scaling else OPTIMIZERS)]


def _chosen(option: str, text: str, known: Collection[str]) -> list[str]:
    return list(dict.fromkeys(find(word, known, f"{option}: no") for word in text.split(",")))


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    size = int(match[1]) * UNITS[match[2]] if match else 0
    if size < 4 or size % 4:
        raise UserError(f"--sizes: '{text}' is no size of float32 numbers; expected bytes such as 4K or 64M")
    return size


def _measure(request: Request, places: tuple[Host, ...], found: Reach, threads: int) -> Run:
    """What one launch finds; the command ends where that fails.

    Fewer ranks have as many `threads` each, so that scaling compares ranks and not threads.
    """
    from cli import launching
    from cli.execute import Execution
    from cli.launchers.base import Job
    from cli.preflight.start import look
    from cli.target import of_module

    what = of_module("hvd_train.bench", [request.to_text()])
    job = Job(
        hosts=places,
        program=what.program,
        world_size=request.world_size,
        engine=_engine(request.variants),
        environment={"OMP_NUM_THREADS": str(threads)},
    )
    started = launching.command("auto", found.onto(job))
    for note in (*started.notes, *found.notes):
        say(note)
    look(found, what)
    code = Execution(started, request.world_size, hosts=[host.name for host in found.others], client=found.client).run()
    if code:
        sys.exit(code)
    return {**strict_json.loads_exact(Path(request.output).read_text(encoding="utf-8")), "command": str(started)}


def _engine(names: list[str]) -> str:
    """Whose needs the launcher minds: Horovod's thread wants ranks unbound, and yielding where cores are few."""
    return "horovod" if find_spec("horovod") and any("horovod" in name for name in names) else "mpi"

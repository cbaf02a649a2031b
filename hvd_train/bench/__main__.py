"""One rank of `ddl bench`, started as `python -m hvd_train --script -m hvd_train.bench REQUEST`."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path
from typing import Any

from rich.progress import Progress

from hvd_train.bench import machine
from hvd_train.bench.measure import Bench
from hvd_train.bench.request import BenchRequest
from hvd_train.bench.world import World
from hvd_train.errors import UserError
from hvd_train.text import display, strict_json


def main() -> None:
    request, world = BenchRequest.from_text(sys.argv[1]), World()
    if world.size != request.world_size:
        raise UserError(
            f"this rank sees a world of {world.size} ranks, expected {request.world_size}: mpirun and mpi4py use different "
            "MPI libraries; ddl doctor shows both"
        )
    facts = machine.facts()
    measured = {
        "world_size": world.size,
        "ranks": world.gather(machine.rank_facts()),
        "cases": _cases(request, world),
        "machine": facts,
    }
    if world.rank == 0:
        Path(request.output).write_text(strict_json.dumps_exact(measured), encoding="utf-8")
    world.close()


def _cases(request: BenchRequest, world: World) -> list[dict[str, Any]]:
    family = importlib.import_module(f"hvd_train.bench.{request.what}.base")
    cases = []
    with _progress(request.columns, world.rank) as progress:
        task = progress.add_task("", total=len(request.cases) * request.pairs)
        bench = Bench(world, request.pairs, lambda: progress.update(task, advance=1, refresh=True))
        for number, name in enumerate(request.cases, 1):
            case = family.case(name, world)
            progress.console.print(f"np={world.size}, {number} of {len(request.cases)}: {case}")
            cases.append({"case": name, **bench.measure(case, request.variants)})
            gc.collect()
    return cases


def _progress(columns: int | None, rank: int) -> Progress:
    """Return a progress bar that is drawn between blocks only."""
    console = display.console(force_terminal=columns is not None, width=columns, quiet=rank > 0)
    return display.progress(console, disable=columns is None, auto_refresh=False)


if __name__ == "__main__":
    main()

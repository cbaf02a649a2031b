"""One rank of `ddl bench`: `python -m hvd_train --script -m hvd_train.bench REQUEST`."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path
from typing import Any

from rich.progress import Progress

from hvd_train import display, strict_json
from hvd_train.bench import machine
from hvd_train.bench.measure import Bench
from hvd_train.bench.request import Request
from hvd_train.bench.world import World
from hvd_train.errors import UserError


def main() -> None:
    request, world = Request.from_text(sys.argv[1]), World()
    if world.size != request.world_size:
        raise UserError(
            f"this rank sees a world of {world.size}, not of {request.world_size}: mpirun is of another MPI"
        )
    before = machine.machine()
    found = {
        "world_size": world.size,
        "ranks": world.gather(machine.rank()),
        "cases": _cases(request, world),
        "machine": before,
    }
    if world.rank == 0:
        Path(request.output).write_text(strict_json.dumps_exact(found), encoding="utf-8")
    world.close()


def _cases(request: Request, world: World) -> list[dict[str, Any]]:
    family = importlib.import_module(f"hvd_train.bench.{request.what}.base")
    found = []
    with _progress(request.columns, world.rank) as progress:
        task = progress.add_task("", total=len(request.cases) * request.pairs)
        bench = Bench(world, request.pairs, lambda: progress.update(task, advance=1, refresh=True))
        for number, name in enumerate(request.cases, 1):
            case = family.case(name, world)
            progress.console.print(f"np={world.size}, {number} of {len(request.cases)}: {case}")
            found.append({"case": name, **bench.measure(case, request.variants)})
            gc.collect()
    return found


def _progress(columns: int | None, rank: int) -> Progress:
    """Drawn between blocks only, never by a thread beside them."""
    console = display.console(force_terminal=columns is not None, width=columns, quiet=rank > 0)
    return display.progress(console, disable=columns is None, auto_refresh=False)


if __name__ == "__main__":
    main()

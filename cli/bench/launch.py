"""Launch the ranks of one measurement and read its result."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cli.bench.figures import Run
from cli.follow.follower import follow
from cli.hosts.hostfile import Host
from cli.launch.choose import launch_command
from cli.launch.entrypoint import Module
from cli.launch.job import Job
from cli.launch.target import of_script
from cli.output.streams import say
from cli.remote.preflight.start import require_ready
from cli.remote.reach import Reach
from hvd_train.text import strict_json

if TYPE_CHECKING:
    from hvd_train.bench.request import BenchRequest


def measure(request: BenchRequest, hosts: tuple[Host, ...], reached: Reach, threads: int) -> Run:
    """Run `request` on `hosts` and return its result; exit with the code of the job if it fails.

    Every rank has `threads` threads, also if there are fewer ranks than slots, so that scaling
    compares ranks and not threads.
    """
    target = of_script(Module("hvd_train.bench", (request.to_text(),)))
    job = Job(
        hosts=hosts,
        program=target.program,
        world_size=request.world_size,
        engine=_engine(request.variants),
        environment={"OMP_NUM_THREADS": str(threads)},
    )
    command = launch_command("auto", reached.onto(job))
    for note in (*command.notes, *reached.notes):
        say(note)
    require_ready(reached, target)
    code = follow(command, request.world_size, reach=reached).code
    if code:
        sys.exit(code)
    return {**strict_json.loads_exact(Path(request.output).read_text(encoding="utf-8")), "command": str(command)}


def _engine(variants: list[str]) -> str:
    """Return the engine for the placement: Horovod's thread needs unbound ranks that yield cores."""
    return "horovod" if find_spec("horovod") and any("horovod" in name for name in variants) else "mpi"

"""Start ranks that do a task with a trained model, and read what it returns."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.follow.follower import follow
from cli.follow.supervisor import Limits
from cli.hosts.hostfile import given_hosts
from cli.hosts.machine import Machine
from cli.launch.choose import launch_command
from cli.launch.engines import choose_engine
from cli.launch.job import Job
from cli.launch.start import world_size
from cli.launch.target import RANK, Target
from cli.output.streams import say
from cli.remote.preflight.start import require_ready
from cli.remote.reach import reach
from hvd_train.config import words
from hvd_train.config.document import Document
from hvd_train.config.launch import RESULT, Launch, to_document
from hvd_train.config.resolve import read_section
from hvd_train.saved.run import Run
from hvd_train.text import strict_json

STALL_SECONDS = 300


@dataclass(frozen=True)
class Ranks:
    """Where a task runs: the options of a command of the same names."""

    np: int | None = None
    hosts: str | None = None
    hostfile: Path | None = None
    iface: str | None = None
    ssh_args: str | None = None


def run_task(run: Run, task: str, options: Mapping[str, Any], ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Do `task` with the `options` of its `create`, and return its result.

    Rank 0 writes further files to `folder`. Exit with the code of the job if it fails.
    """
    listed, machine = given_hosts(ranks.hosts, ranks.hostfile), Machine.here()
    number = world_size(ranks.np, listed, oversubscribe=False)
    reached = reach(listed, machine, iface=ranks.iface, ssh_args=ranks.ssh_args)
    engine = choose_engine("auto", number, alone=not listed)
    target = _target(run, task, options, number, engine, folder)
    job = Job(
        hosts=listed,
        program=target.program,
        world_size=number,
        engine=engine,
        environment=target.environment,
    )
    command = launch_command("auto", reached.onto(job))
    for note in (*command.notes, *reached.notes):
        say(note)
    require_ready(reached, target)
    code = follow(command, number, reach=reached, limits=Limits(stall_timeout=STALL_SECONDS)).code
    if code:
        sys.exit(code)
    result: dict[str, Any] = strict_json.loads_exact((folder / RESULT).read_text(encoding="utf-8"))
    (folder / RESULT).unlink()
    return result


def _target(run: Run, task: str, options: Mapping[str, Any], ranks: int, engine: str, folder: Path) -> Target:
    """Return the target of a task; UserError if its options are wrong."""
    launch = {
        "world_size": ranks,
        "engine": engine,
        "output": str(folder),
        "resume": str(run.checkpoint),
        "columns": shutil.get_terminal_size().columns if sys.stderr.isatty() else None,
        "task": {"name": task, **options},
    }
    document = to_document(run.config, read_section(Launch, Document(launch, task)))
    word, variables = words.split(document)
    path = os.pathsep.join([*run.search_path, *filter(None, [os.environ.get("PYTHONPATH")])])
    # Pictures of environments are drawn by SDL, which would look for a display.
    more = {"PYTHONPATH": path, "SDL_VIDEODRIVER": os.environ.get("SDL_VIDEODRIVER", "dummy")}
    return Target((*RANK, word), environment={**variables, **more}, config=run.config)

"""`ddl stack`: where every rank of a running job is."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hvd_train.errors import ExitCode

if TYPE_CHECKING:
    from cli.ssh import Client
    from cli.stacks import Stack


def command(
    run: Annotated[Path, typer.Argument(help="Folder of a run that is under way.", show_default=False)],
) -> None:
    """Show the Python stack of every rank of a running job."""
    from concurrent.futures import ThreadPoolExecutor

    from cli.ranks import read
    from cli.ssh import AT_ONCE, Client

    ranks = read(run)
    job: str | None = ranks[0].get("job")
    client = Client(tuple(ranks[0].get("ssh", ())))
    hosts = sorted({rank["host"] for rank in ranks})
    pids = [[rank["pid"] for rank in ranks if rank["host"] == host] for host in hosts]
    with ThreadPoolExecutor(min(len(hosts), AT_ONCE)) as pool:
        stacks = dict(
            zip(hosts, pool.map(lambda host, of_host: _stacks(host, job, of_host, client), hosts, pids), strict=True)
        )
    found = [stacks[rank["host"]][str(rank["pid"])] for rank in ranks]
    if not any(stack["answered"] for stack in found):
        print(f"ddl: {run}: no rank answers: {found[0]['text']}", file=sys.stderr)
        sys.exit(ExitCode.FAILURE)
    for rank, stack in zip(ranks, found, strict=True):
        print(f"rank {rank['rank']} on {rank['host']}, process {rank['pid']}")
        print("".join(f"    {line}\n" for line in stack["text"].strip().splitlines()))


def _stacks(host: str, job: str | None, pids: Sequence[int], client: Client) -> dict[str, Stack]:
    """By process id. Nodes of a SLURM job need no ssh, and a login host may not know their names."""
    from cli import ssh, stacks
    from cli.machine import Machine
    from hvd_train import internal

    argv = internal.argv("cli.stacks", *map(str, pids))
    if Machine.here().is_named(host):
        found, problem = _run(argv, stacks.SECONDS * len(pids) + ssh.CONNECT_SECONDS)
    elif job is not None:
        step = ["srun", "--overlap", f"--jobid={job}", f"--nodelist={host}", "--nodes=1", "--ntasks=1", "--mpi=none"]
        found, problem = _run([*step, *argv], stacks.SECONDS * len(pids) + _STEP_SECONDS)
    else:
        answer = client.ask(host, argv, 2 * ssh.CONNECT_SECONDS + stacks.SECONDS * len(pids))
        found, problem = answer.json, f"{answer.problem}; {answer.remedy}"
    return found or {str(pid): {"answered": False, "text": problem} for pid in pids}


_STEP_SECONDS = 60
"""How long SLURM may take to start a step, or to find that it cannot."""


def _run(argv: Sequence[str], seconds: float) -> tuple[Any, str]:
    """The answer of a program, and why there is none; a job around this process has no say in where it runs."""
    import subprocess

    from cli import ssh

    shell = {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or not name.startswith("SLURM_")}
    try:
        done = subprocess.run(argv, env=shell, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    own = [line for line in lines if not line.startswith("srun: ")]  # srun says in the end only that it failed
    return ssh.unframed(done.stdout), own[-1] if own else lines[0]

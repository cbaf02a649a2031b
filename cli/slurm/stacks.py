"""Collect the Python stacks of the ranks of a job, on this machine, through SLURM or ssh."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cli.follow import stacks
from cli.follow.stacks import Stack
from cli.hosts.machine import Machine
from cli.remote import ssh
from cli.remote.ssh import Client
from hvd_train.rank import internal

_STEP_SECONDS = 60
"""Time that SLURM may take to start a step, or to refuse it."""


def collect(ranks: Sequence[Mapping[str, Any]]) -> list[Stack]:
    """Return the stack of each of `ranks` (from `cli.follow.ranks.read`).

    The hosts are queried in parallel.
    """
    job: str | None = ranks[0].get("job")
    client = Client(tuple(ranks[0].get("ssh", ())))
    hosts = sorted({rank["host"] for rank in ranks})
    pids = {host: [rank["pid"] for rank in ranks if rank["host"] == host] for host in hosts}
    with ThreadPoolExecutor(min(len(hosts), ssh.AT_ONCE)) as pool:
        answers = pool.map(lambda host: _on_host(host, job, pids[host], client), hosts)
        by_host = dict(zip(hosts, answers, strict=True))
    return [by_host[rank["host"]][str(rank["pid"])] for rank in ranks]


def _on_host(host: str, job: str | None, pids: Sequence[int], client: Client) -> dict[str, Stack]:
    """Return the stacks on `host` by process id.

    The nodes of a SLURM job are reached through srun: ssh may be closed, and a login host may not
    resolve their names.
    """
    argv = internal.argv("cli.follow.stacks", *map(str, pids))
    seconds = stacks.SECONDS * len(pids)
    if Machine.here().is_named(host):
        answer, problem = _run(argv, seconds + ssh.CONNECT_SECONDS)
    elif job is not None:
        step = ["srun", "--overlap", f"--jobid={job}", f"--nodelist={host}", "--nodes=1", "--ntasks=1", "--mpi=none"]
        answer, problem = _run([*step, *argv], seconds + _STEP_SECONDS)
    else:
        reply = client.ask(host, argv, seconds + 2 * ssh.CONNECT_SECONDS)
        answer, problem = reply.json, f"{reply.problem}; {reply.remedy}"
    return answer or {str(pid): Stack(answered=False, text=problem) for pid in pids}


def _run(argv: Sequence[str], seconds: float) -> tuple[Any, str]:
    """Run a program outside of the surrounding SLURM job; return its answer and the problem."""
    shell = {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or not name.startswith("SLURM_")}
    try:
        done = subprocess.run(argv, env=shell, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    own = [line for line in lines if not line.startswith("srun: ")]  # the last line of srun only says that it failed
    return ssh.unframed(done.stdout), own[-1] if own else lines[0]

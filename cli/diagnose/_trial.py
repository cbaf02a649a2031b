"""Two ranks that reduce, on each launcher and engine found: what runs is `ddl run` with the bench's own all-reduce."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from cli import launching
from cli.bench.figures import duration
from cli.diagnose.base import Finding
from cli.hosts import Host
from cli.launchers.base import Job
from cli.machine import Machine
from cli.reach import reach, scratch
from cli.target import RANK
from hvd_train import internal
from hvd_train.bench.request import Request
from hvd_train.errors import UserError

LAUNCHERS = ("mpirun", "horovodrun", "srun")
VARIANTS = {"mpi": "ddl_mpi", "horovod": "horovod"}
"""The bench's name for an all-reduce on each engine."""
LARGE, SMALL = 64 * 2**20, 4 * 2**10
ROUNDS = 5
SECONDS = 60


def trials(hosts: Sequence[Host] = (), ssh_args: str | None = None) -> Iterator[tuple[str, Finding]]:
    """For each launcher and engine found, one after the other, so that none slows another down; on all `hosts`."""
    engines = [engine for engine in VARIANTS if engine == "mpi" or find_spec(engine)]
    for launcher, engine in itertools.product(LAUNCHERS, engines):
        if _found(launcher, engine, hosts):
            yield f"{launcher}/{engine}", trial(launcher, engine, hosts, ssh_args)


def trial(launcher: str, engine: str, hosts: Sequence[Host] = (), ssh_args: str | None = None) -> Finding:
    """A rank on each of `hosts`, or two on this machine."""
    with tempfile.TemporaryDirectory(prefix="ddl-doctor-", dir=scratch(hosts, Machine.here())) as folder:
        output = Path(folder) / "measured.json"
        how = ["--np", f"{len(hosts) or 2}", *_where(hosts, ssh_args), "--launcher", launcher, "--engine", engine]
        request = Request(
            "allreduce", len(hosts) or 2, [VARIANTS[engine]], [str(LARGE), str(SMALL)], ROUNDS, str(output), None
        )
        options = ["--timeout", str(SECONDS), "--quiet", "--no-preflight", "--output", os.devnull]
        done = subprocess.run(
            internal.argv("cli", "run", *how, *options, "-m", "hvd_train.bench", request.to_text()),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        again = f"ddl run {shlex.join(how)} --verbose -m mpi4py.bench helloworld"
        if done.returncode:
            return Finding("error", f"exit code {done.returncode}: {_reason(done.stderr)}", again)
        return judge(launcher, engine, json.loads(output.read_text(encoding="utf-8")))


def judge(launcher: str, engine: str, measured: dict[str, Any]) -> Finding:
    """Bytes over seconds for 64 MiB, and seconds for 4 KiB: medians over rounds of the slowest rank."""
    variants = [case["variants"].get(VARIANTS[engine]) for case in measured["cases"]]
    if None in variants:
        return Finding("error", next(iter(measured["cases"][0]["unavailable"].values())))
    large, small = (median(variant["rounds"]) for variant in variants)
    facts = {"launcher": launcher, "engine": engine, "gib_per_second": LARGE / 2**30 / large, "latency_seconds": small}
    return Finding("ok", f"64 MiB at {LARGE / 2**30 / large:.3g} GiB/s, 4 KiB in {duration(small)}", facts=facts)


def _where(hosts: Sequence[Host], ssh_args: str | None) -> list[str]:
    """Options of `ddl run` for one rank on each of `hosts`, logged in to as their hostfile says."""
    if not hosts:
        return []
    told = list(reach(hosts, Machine.here(), ssh_args=ssh_args).client.args)
    return [
        "--hosts",
        ",".join(f"{host.name}:1" for host in hosts),
        *(["--ssh-args", shlex.join(told)] if told else []),
    ]


def _found(launcher: str, engine: str, hosts: Sequence[Host]) -> bool:
    try:
        launching.command(launcher, Job(RANK, len(hosts) or 2, engine, tuple(replace(host, slots=1) for host in hosts)))
    except UserError:
        return False
    return True


def _reason(text: str) -> str:
    """What `ddl` itself says of the end, else the last words."""
    lines = [line for line in text.splitlines() if line.strip()]
    told = [line.removeprefix("ddl: ") for line in lines if line.startswith("ddl: ")]
    last = (lines or ["it says nothing"])[-1]
    return f"{told[-1]} {last}" if told and told[-1].endswith(":") else (told or [last])[-1]

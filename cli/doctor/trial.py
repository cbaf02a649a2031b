"""Runs the bench's all-reduce with `ddl run` on two ranks, for each launcher and engine found."""

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

from cli.bench.figures import duration
from cli.doctor.base import Finding
from cli.hosts.hostfile import Host
from cli.hosts.machine import Machine
from cli.launch.choose import launch_command
from cli.launch.job import Job
from cli.launch.target import RANK
from cli.remote.reach import reach, scratch
from hvd_train.bench.request import BenchRequest
from hvd_train.errors import UserError
from hvd_train.rank import internal

LAUNCHERS = ("mpirun", "horovodrun", "srun")
VARIANTS = {"mpi": "ddl_mpi", "horovod": "horovod"}
"""The variant of `ddl bench allreduce` for each engine."""
LARGE, SMALL = 64 * 2**20, 4 * 2**10
ROUNDS = 5
SECONDS = 60


def trials(hosts: Sequence[Host] = (), ssh_args: str | None = None) -> Iterator[tuple[str, Finding]]:
    """Run a trial for each launcher and engine found, and yield its name and finding.

    Trials run one at a time, on all `hosts`.
    """
    engines = [engine for engine in VARIANTS if engine == "mpi" or find_spec(engine)]
    for launcher, engine in itertools.product(LAUNCHERS, engines):
        if _found(launcher, engine, hosts):
            yield f"{launcher}/{engine}", trial(launcher, engine, hosts, ssh_args)


def trial(launcher: str, engine: str, hosts: Sequence[Host] = (), ssh_args: str | None = None) -> Finding:
    """Run one rank on each of `hosts`, or two ranks on this machine, and return the finding."""
    with tempfile.TemporaryDirectory(prefix="ddl-doctor-", dir=scratch(hosts, Machine.here())) as folder:
        output = Path(folder) / "measured.json"
        how = ["--np", f"{len(hosts) or 2}", *_where(hosts, ssh_args), "--launcher", launcher, "--engine", engine]
        request = BenchRequest(
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
    """Judge the bandwidth at 64 MiB and the latency at 4 KiB.

    Both are medians over rounds of the slowest rank.
    """
    variants = [case["variants"].get(VARIANTS[engine]) for case in measured["cases"]]
    if None in variants:
        return Finding("error", next(iter(measured["cases"][0]["unavailable"].values())))
    large, small = (median(variant["rounds"]) for variant in variants)
    facts = {"launcher": launcher, "engine": engine, "gib_per_second": LARGE / 2**30 / large, "latency_seconds": small}
    return Finding("ok", f"64 MiB at {LARGE / 2**30 / large:.3g} GiB/s, 4 KiB in {duration(small)}", facts=facts)


def _where(hosts: Sequence[Host], ssh_args: str | None) -> list[str]:
    """Return the options of `ddl run` that put one rank on each of `hosts`.

    They include the ssh options of the hostfile.
    """
    if not hosts:
        return []
    words = list(reach(hosts, Machine.here(), ssh_args=ssh_args).client.args)
    return [
        "--hosts",
        ",".join(f"{host.name}:1" for host in hosts),
        *(["--ssh-args", shlex.join(words)] if words else []),
    ]


def _found(launcher: str, engine: str, hosts: Sequence[Host]) -> bool:
    try:
        launch_command(launcher, Job(RANK, len(hosts) or 2, engine, tuple(replace(host, slots=1) for host in hosts)))
    except UserError:
        return False
    return True


def _reason(text: str) -> str:
    """Return the last message of `ddl` in `text`, or else the last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    messages = [line.removeprefix("ddl: ") for line in lines if line.startswith("ddl: ")]
    last = (lines or ["no output"])[-1]
    return f"{messages[-1]} {last}" if messages and messages[-1].endswith(":") else (messages or [last])[-1]

"""Two ranks that reduce, on each launcher and engine found: what runs is `ddl run` with the bench's own all-reduce."""

from __future__ import annotations

import itertools
import json
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from cli import launching
from cli.bench.figures import duration
from cli.diagnose.base import Finding
from cli.launchers.base import Job
from cli.machine import Machine
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


def trials() -> Iterator[tuple[str, Finding]]:
    """For each launcher and engine found, one after the other, so that none slows another down."""
    engines = [engine for engine in VARIANTS if engine == "mpi" or find_spec(engine)]
    for launcher, engine in itertools.product(LAUNCHERS, engines):
        if _found(launcher, engine):
            yield f"{launcher}/{engine}", trial(launcher, engine)


def trial(launcher: str, engine: str) -> Finding:
    # In an allocation rank 0 may be on another host, which is likelier to share this folder than /tmp.
    folder = Path.cwd() if Machine.here().allocation else None
    with tempfile.TemporaryDirectory(prefix="ddl-doctor-", dir=folder) as scratch:
        output = Path(scratch) / "measured.json"
        request = Request("allreduce", 2, [VARIANTS[engine]], [str(LARGE), str(SMALL)], ROUNDS, str(output), None)
        how = ["--np", "2", "--launcher", launcher, "--engine", engine, "--timeout", str(SECONDS), "--quiet"]
        done = subprocess.run(
            internal.argv("cli", "run", *how, "-m", "hvd_train.bench", request.to_text()),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        again = f"ddl run --np 2 --launcher {launcher} --engine {engine} --verbose -m mpi4py.bench helloworld"
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


def _found(launcher: str, engine: str) -> bool:
    try:
        launching.command(launcher, Job(RANK, 2, engine))
    except UserError:
        return False
    return True


def _reason(text: str) -> str:
    """What `ddl` itself says of the end, else the last words."""
    lines = [line for line in text.splitlines() if line.strip()]
    told = [line.removeprefix("ddl: ") for line in lines if line.startswith("ddl: ")]
    last = (lines or ["it says nothing"])[-1]
    return f"{told[-1]} {last}" if told and told[-1].endswith(":") else (told or [last])[-1]

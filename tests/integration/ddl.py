"""Tools that run the real `ddl` and read its results."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from cli.main import run

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits_mlp.yaml"

HEAVY = {"torch", "torchmetrics", "numpy", "horovod", "mpi4py", "sklearn", "pyarrow", "tensorboard", "matplotlib"}

SMALL = """\
model: {name: mlp, hidden: [32]}
data: {name: digits, batch_size: 16}
optimizer: {name: SGD, lr: 0.05, momentum: 0.9}
train: {epochs: 2, precision: fp64}
"""

LONG = """\
import torch

class Model(torch.nn.Linear):
    def __init__(self, weights):
        assert len(weights) == 25_000
        super().__init__(64, 10)

    def forward(self, x):
        return super().forward(x.flatten(1))
"""
"""The source of the module `long`, for `long_yaml`."""


FALTERS = """\
import os, time
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.calls = torch.nn.Linear(64, 10), 0

    def forward(self, x):
        self.calls += self.training
        if self.calls == 7 and os.environ["OMPI_COMM_WORLD_RANK"] == "1":
            {what}
        return self.inner(x.flatten(1))
"""


def ddl(
    *arguments: str | Path, cwd: Path, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `ddl` to its end in `cwd` and capture its output."""
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=_environment(environment), capture_output=True, text=True, timeout=timeout, check=False
    )


def ddl_here(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `ddl` in `cwd` in this process, for command lines that start no other process."""
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run([*map(str, arguments)])
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def start(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `ddl` in `cwd` with its output in pipes."""
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=_environment(environment),
        stdout=pipe,
        stderr=pipe,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell has what is in its background ignore it
    )


def heavy(arguments: list[str]) -> str:
    """Return the modules of `HEAVY` that `ddl` imports for these arguments, as the text of a list.

    After a failure, return its message.
    """
    text = (
        "import sys; from cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stderr.strip().splitlines()[-1]


def long_yaml() -> str:
    """Return a YAML file of 300 KB, more than a command-line word can hold."""
    values = [round(i / 7, 9) for i in range(25_000)]
    return SMALL.replace("{name: mlp, hidden: [32]}", f"{{target: 'long:Model', args: {{weights: {values}}}}}")


def falters(what: str) -> str:
    """Return a module whose `Model` for digits runs `what` in its seventh call on rank 1."""
    return FALTERS.format(what=what)


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def wait_for(path: Path, pattern: str, timeout: float = 60) -> Path:
    """Wait for a file below `path` that matches `pattern`, and return the first one."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = sorted(path.glob(pattern))
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} in {path} after {timeout} s")


def wait_for_steps(out: Path, timeout: float = 60) -> None:
    """Wait until the run in the folder `out` has logged its first steps."""
    metrics, deadline = wait_for(out, "metrics.jsonl", timeout), time.monotonic() + timeout
    while not metrics.stat().st_size:
        assert time.monotonic() < deadline, f"no steps in {out} after {timeout} s"
        time.sleep(0.05)


def ranks(launcher: int) -> list[psutil.Process]:
    """Return the rank processes below the process `launcher`."""
    found = [p for p in psutil.Process(launcher).children(recursive=True) if is_rank(p)]
    # A rank that starts a program is there twice until the copy has become the program.
    return [p for p in found if p.ppid() not in {other.pid for other in found}]


def is_rank(process: psutil.Process) -> bool:
    """Return True for a rank; False for another process, and for one that has just ended."""
    with contextlib.suppress(psutil.Error):
        return "hvd_train" in process.cmdline() and "python" in process.name()
    return False


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

"""Start the real `ddl`, and look at what it left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits_mlp.yaml"

HEAVY = {"torch", "numpy", "horovod", "mpi4py", "sklearn", "pyarrow", "tensorboard", "matplotlib"}

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
"""The module `long`, for `long_yaml`."""


FALTERS = """\
import os, time
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.calls = torch.nn.Linear(64, 10), 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 7 and os.environ["OMPI_COMM_WORLD_RANK"] == "1":
            {what}
        return self.inner(x.flatten(1))
"""


def ddl(
    *arguments: str | Path, cwd: Path, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `ddl` to its end in `cwd`."""
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=_environment(environment), capture_output=True, text=True, timeout=timeout, check=False
    )


def start(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `ddl` in `cwd`, its output in pipes."""
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
    """The modules of `HEAVY` that `ddl` imports for these arguments, as a list in words; what it said, where it failed."""
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
    """A model file of 300 KB: more than a word of a command line can have."""
    values = [round(i / 7, 9) for i in range(25_000)]
    return SMALL.replace("{name: mlp, hidden: [32]}", f"{{target: 'long:Model', args: {{weights: {values}}}}}")


def falters(what: str) -> str:
    """A module with a `Model` of digits that does `what` in its seventh call on rank 1."""
    return FALTERS.format(what=what)


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def wait_for(path: Path, pattern: str, timeout: float = 60) -> Path:
    """The first file below `path` that fits `pattern`, once there is one."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = sorted(path.glob(pattern))
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} in {path} after {timeout} s")


def wait_for_steps(out: Path, timeout: float = 60) -> None:
    """Return once the run of the folder `out` has taken so many steps that it told of them."""
    metrics, deadline = wait_for(out, "metrics.jsonl", timeout), time.monotonic() + timeout
    while not metrics.stat().st_size:
        assert time.monotonic() < deadline, f"no steps in {out} after {timeout} s"
        time.sleep(0.05)


def ranks(launcher: int) -> list[psutil.Process]:
    """The rank processes below the process `launcher`."""
    below = psutil.Process(launcher).children(recursive=True)
    return [p for p in below if "hvd_train" in p.cmdline() and "python" in p.name()]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

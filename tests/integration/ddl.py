"""Start the real `ddl`, and look at what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits_mlp.yaml"

SMALL = """\
model: {name: mlp, hidden: [32]}
data: {name: digits, batch_size: 16}
optimizer: {name: SGD, lr: 0.05, momentum: 0.9}
train: {epochs: 2, precision: fp64}
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
    return subprocess.Popen(command, cwd=cwd, env=_environment(environment), stdout=pipe, stderr=pipe, text=True)


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


def ranks(launcher: int) -> list[psutil.Process]:
    """The rank processes below the process `launcher`."""
    below = psutil.Process(launcher).children(recursive=True)
    return [p for p in below if "hvd_train" in p.cmdline() and "python" in p.name()]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

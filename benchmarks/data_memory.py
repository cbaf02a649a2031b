"""Memory and start of runs on a memory-mapped array.

Run `python benchmarks/data_memory.py [MiB] [name]`; by default 1024 MiB, as `npy`. The sources are
`npy`, `npz`, `safetensors`, and `compressed` (an .npz file that must be decoded). The steps are those
of one epoch, which reads every sample, so that every page of the data is resident.

The memory is the largest sum of the proportional set sizes of the processes of `ddl run`, over that
of a run of as many steps on few samples, whose own size is added. The start lasts from the command
to the first step. Its difference to the start on few samples is the time that the data takes.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from safetensors.numpy import save_file

WIDTH = 1024
BATCH = 256
FEW = 4096
"""Samples of the run with which the others are compared."""
YAML = """\
model: {{name: mlp, hidden: [8]}}
data: {{{source}, batch_size: {batch}, test_fraction: 0.01}}
optimizer: {{name: SGD, lr: 0.01}}
train: {{steps: {steps}, log_every: 1}}
"""


class Figures(NamedTuple):
    """The memory of a run in bytes, and the seconds until its first step."""

    memory: int
    start: float


def write(folder: Path, name: str, samples: int) -> str:
    """Write random samples; return the options of their source."""
    generator = np.random.default_rng(0)
    arrays = {
        "x": generator.standard_normal((samples, WIDTH), np.float32),
        "y": generator.integers(0, 10, samples),
    }
    path = folder / f"data-{samples}"
    if name == "npy":
        for key, array in arrays.items():
            np.save(f"{path}-{key}.npy", array)
        return f"name: npy, x: {path}-x.npy, y: {path}-y.npy"
    if name == "safetensors":
        save_file(arrays, path)
        return f"name: safetensors, path: {path}"
    with path.open("wb") as file:
        (np.savez_compressed if name == "compressed" else np.savez)(file, **arrays)
    return f"name: npz, path: {path}"


def measure(folder: Path, source: str, ranks: int, steps: int) -> Figures:
    """Return the figures of one run."""
    here = folder / f"{ranks}-{time.time_ns()}"
    here.mkdir()
    (here / "run.yaml").write_text(YAML.format(source=source, batch=BATCH, steps=steps))
    command = [sys.executable, "-m", "cli", "run", "--np", str(ranks), "run.yaml"]
    begin = time.perf_counter()
    with subprocess.Popen(command, cwd=here, stdout=subprocess.DEVNULL) as process:
        memory, start = 0, 0.0
        while process.poll() is None:
            if not start and any(file.stat().st_size for file in here.rglob("metrics.jsonl")):
                start = time.perf_counter() - begin
            memory = max(memory, resident(process.pid)) if start else 0
            time.sleep(0.05)
    assert process.returncode == 0, f"{' '.join(command)} ended with {process.returncode}"
    return Figures(memory, start)


def resident(pid: int) -> int:
    """Return the proportional set size of a process and its descendants."""
    total = 0
    with contextlib.suppress(psutil.Error, OSError):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
    return total


def main() -> None:
    """Print a table of the runs on 1, 2 and 4 ranks."""
    mebibytes, name = int(sys.argv[1]) if len(sys.argv) > 1 else 1024, sys.argv[2] if len(sys.argv) > 2 else "npy"
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        samples = mebibytes * 2**20 // (4 * WIDTH)
        sources = [write(Path(folder), name, number) for number in (FEW, samples)]
        print(f"{'np':>3}{'memory MiB':>12}{'start s':>9}{'of it data':>12}")
        for ranks in (1, 2, 4):
            steps = samples // (BATCH * ranks)
            base, run = (measure(Path(folder), source, ranks, steps) for source in sources)
            added = (run.memory - base.memory) / 2**20 + FEW * WIDTH * 4 / 2**20
            print(f"{ranks:>3}{added:>12.0f}{run.start:>9.1f}{run.start - base.start:>12.1f}", flush=True)


if __name__ == "__main__":
    main()

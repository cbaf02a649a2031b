"""Loading beside training, compared with torch's DataLoader: `python -m benchmarks.data_loading`.

Run it on an idle machine with two cores.

- `waiting`: samples that wait for 3 ms, batch 32, np=2, 4 workers a rank. `computing`: samples that
  compute for 3 ms in Python. The share of the data phase is that of `ddl run`.
- `jpeg`: noise as JPEG files of 320 x 240 pixels, np=1, 2 workers, resized to 224 x 224.
- `digits --against FOLDER`: the step on arrays in memory, without workers, and that of the checkout
  in FOLDER (`git worktree add FOLDER b9dc20a`).

Both loaders have the same samples, collate function, prefetch and start method, and alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
DDL = Path(sys.executable).with_name("ddl")
RANK = "benchmarks/data_loading_rank.py"
JPEGS = 512
STEPPING = ("data", "forward", "backward", "comm", "optimizer")

YAML = """\
model: {{name: mlp, hidden: [{width}, {width}]}}
data: {{target: "benchmarks.data_loading_samples:{kind}", length: {length}, batch_size: 32, workers: 4}}
train: {{epochs: 1, eval_every: 100000}}
"""
DIGITS = """\
model: {name: mlp, hidden: [64]}
data: {name: digits, batch_size: 32}
train: {epochs: 40, eval_every: 100000}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["waiting", "computing", "jpeg", "digits"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--against", type=Path, help="digits: another checkout of ddl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ddl-loading-") as folder:
        if options.what == "digits":
            digits(Path(folder), options.against, options.rounds)
        elif options.what == "jpeg":
            write_jpegs(Path(folder))
            found = alternate("jpeg", 1, 2, JPEGS // 32, options.rounds, folder)
            seconds = {name: median(one[name][0] for one in found["ranks"][0]) for name in ("ddl", "torch")}
            rates = {name: round(found["samples"] / value, 1) for name, value in seconds.items()}
            print(f"images per second: {rates}; ratio {median(ratios(found)) ** -1:.3f} (goal >= 0.95)")
        else:
            found = alternate(options.what, 2, 4, 60, options.rounds)
            print(f"{options.what}: seconds of an epoch over torch's: {median(ratios(found)):.3f} (goal <= 1.0)")
            shares = [share(Path(folder) / str(number), options.what) for number in range(3)]
            print(f"{options.what}: share of the data phase in ddl run: {median(shares):.3f} (goal <= 0.05)")


def alternate(kind: str, np_: int, workers: int, steps: int, rounds: int, *more: str) -> dict[str, Any]:
    """Return what the ranks of benchmarks/data_loading_rank.py measured."""
    words = [kind, *map(str, (workers, steps, rounds)), *more]
    with tempfile.TemporaryDirectory(prefix="ddl-loading-") as folder:
        ran = ddl(ROOT, "run", "--np", str(np_), "--output", f"{folder}/run", RANK, *words)
    return dict(json.loads(next(line for line in ran.splitlines() if line.startswith("{"))))


def ratios(found: dict[str, Any]) -> list[float]:
    """Return the seconds of ddl over those of torch for each round; the slowest rank counts."""
    rounds = zip(*found["ranks"], strict=True)
    return [
        max(rank["ddl"][0] for rank in ranks) / max(rank["torch"][0] for rank in ranks) for ranks in map(list, rounds)
    ]


def share(folder: Path, kind: str) -> float:
    """Return the part of the steps of a run in which rank 0 waited for batches."""
    config = folder.with_suffix(".yaml")
    config.write_text(YAML.format(kind=kind, length=2 * 32 * 200, width=2400))
    ddl(ROOT, "run", "--np", "2", "--output", str(folder), str(config))
    seconds = json.loads((folder / "summary.json").read_text())["seconds"]
    return float(seconds["data"] / sum(seconds[phase] for phase in STEPPING))


def digits(folder: Path, against: Path, rounds: int) -> None:
    """Print the ratio of the seconds of a step to those of the checkout `against`."""
    config = folder / "digits.yaml"
    config.write_text(DIGITS)
    found = []
    for number in range(rounds):
        rates = {}
        for root in (ROOT, against) if number % 2 else (against, ROOT):
            output = folder / f"{number}-{len(rates)}"
            ddl(root, "run", "--np", "2", "--output", str(output), str(config))
            rates[root] = json.loads((output / "summary.json").read_text())["steps_per_second"]
        found.append(rates[against] / rates[ROOT])
    print(f"digits: seconds of a step over those of {against}: {median(found):.3f} (goal <= 1.02)")


def write_jpegs(folder: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(JPEGS):
        path = folder / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (240, 320, 3), dtype=np.uint8)).save(path, quality=90)


def ddl(root: Path, *words: str) -> str:
    """Run the checkout `root` of ddl and return its standard output."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([DDL, *words], cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    main()

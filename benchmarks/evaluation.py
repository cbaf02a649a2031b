"""Throughput of `ddl evaluate` on several ranks over one: `python -m benchmarks.evaluation`.

A convolutional network (`cnn`) is trained for one step on made-up images, and evaluated on all of
them. The phase from the first batch to the end of the slowest rank is compared, without the start of
the ranks and the loading of the model. The variants alternate:

    one thread      one rank with one thread: what a core does
    all threads     one rank with all cores
    ranks           --np ranks with cores / np threads each
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from cli.bench import tables
from cli.bench.goals import Goal

MODEL = """\
model: {name: cnn, channels: [32, 64]}
data: {name: npz, path: images.npz, test_path: images.npz, workers: 0}
train: {steps: 1, eval_samples: 32}
"""
DDL = Path(sys.executable).with_name("ddl")
Rates = dict[str, float]


def main() -> None:
    options = parse()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="ddl-evaluation-") as folder:
        rounds = measure(Path(folder), options.np, options.rounds, options.images)
    cores = os.cpu_count() or 1
    ratios = {name: median(one["ranks"] / one[name] for one in rounds) for name in ("one thread", "all threads")}
    goals = [
        Goal(
            f"images/s at np={options.np} over one rank with one thread", ">=", 0.85 * options.np, ratios["one thread"]
        )
    ]
    judged = [{**asdict(goal), "met": goal.met} for goal in goals]
    title = f"{options.images} images, {cores} cores, load {load:.1f}: medians of {options.rounds} rounds"
    Console().print(table(rounds, title))
    Console().print(f"over one rank with all threads: {ratios['all threads']:.2f}")
    Console().print(tables.goals(judged))
    if options.output:
        record = {"np": options.np, "load": load, "rounds": rounds, "ratios": ratios, "targets": judged}
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--np", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="evaluations of each variant, after one warm-up round")
    parser.add_argument("--images", type=int, default=20_000, help="number of images of 3 x 32 x 32")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def measure(folder: Path, np_: int, rounds: int, images: int) -> list[Rates]:
    """Return the images per second of each variant in each round. The order within a round alternates."""
    draw = np.random.default_rng(0)
    x = draw.random((images, 3, 32, 32), dtype=np.float32)
    np.savez(folder / "images.npz", x=x, y=draw.integers(10, size=images))
    (folder / "model.yaml").write_text(MODEL, encoding="utf-8")
    run(folder, "run", "--np", "1", "--output", "trained", "model.yaml")
    variants: dict[str, tuple[int, Mapping[str, str]]] = {
        "one thread": (1, {"OMP_NUM_THREADS": "1"}),
        "all threads": (1, {}),
        "ranks": (np_, {}),
    }
    found = []
    for number in range(rounds + 1):
        names = sorted(variants, reverse=number % 2 == 1)
        found.append({name: rate(folder, f"{number}-{name.replace(' ', '-')}", *variants[name]) for name in names})
    return found[1:]


def rate(folder: Path, name: str, ranks: int, environment: Mapping[str, str]) -> float:
    text = run(folder, "evaluate", "trained", "--np", str(ranks), "--output", name, "--json", **environment)
    return float(json.loads(text)["samples_per_second"])


def run(folder: Path, *words: str, **environment: str) -> str:
    done = subprocess.run(
        [DDL, *words], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"evaluation: ddl {words[0]} failed: {done.stderr}")
    return done.stdout


def table(rounds: list[Rates], title: str) -> Table:
    found = Table("", "images/s", "over one thread", title=title)
    for name in ("one thread", "all threads", "ranks"):
        rates = f"{median(one[name] for one in rounds):,.0f}"
        found.add_row(name, rates, f"{median(one[name] / one['one thread'] for one in rounds):.2f}")
    return found


if __name__ == "__main__":
    main()

"""What `ddl run` adds to the time until the first step: `python -m benchmarks.launch_overhead`.

Bare is the very command line that `ddl run --dry-run` prints, in a shell. Both start the same ranks and take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from cli.bench import tables
from cli.bench.targets import Target

MODEL = """\
model: mlp
data: {name: synthetic, features: [64], samples: 512}
train: {steps: 2, log_every: 1}
"""
LOOK = 0.001
"""Seconds between two looks at the file that tells of the first step."""
DDL = Path(sys.executable).with_name("ddl")

Run = dict[str, float]


def main() -> None:
    options = parse()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="ddl-launch-") as folder:
        rounds = measure(Path(folder), options.np, options.pairs)
    added = median(pair["ddl run"]["first"] - pair["bare"]["first"] for pair in rounds)
    ratio = median(pair["ddl run"]["first"] / pair["bare"]["first"] for pair in rounds)
    found = [
        Target("seconds that ddl run adds until the first step", "<=", 1.0, added),
        Target("seconds until the first step over those of the bare line", "<=", 1.3, ratio),
    ]
    targets = [{**asdict(target), "met": target.met} for target in found]
    Console().print(table(rounds, f"np={options.np}, load {load:.1f}: median seconds of {options.pairs} pairs"))
    Console().print(tables.targets(targets))
    if options.output:
        record = {"np": options.np, "load": load, "rounds": rounds, "targets": targets}
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launch_overhead", description=__doc__)
    parser.add_argument("--np", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=10, help="runs of each, after one that is not counted")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def measure(folder: Path, np: int, pairs: int) -> list[dict[str, Run]]:
    """The runs of each pair, which one comes first changing from pair to pair."""
    (folder / "model.yaml").write_text(MODEL, encoding="utf-8")
    rounds = []
    for number in range(pairs + 1):
        out = {name: folder / f"{number}-{name}" for name in ("bare", "ddl run")}
        command = {
            name: [DDL, "run", "--np", np, "--output", path, folder / "model.yaml"] for name, path in out.items()
        }
        printed = subprocess.run(words(*command["bare"], "--dry-run"), capture_output=True, text=True, check=True)
        argv = {"bare": ["sh", "-c", f"exec {printed.stdout}"], "ddl run": words(*command["ddl run"])}
        names = sorted(argv, reverse=number % 2 == 1)
        rounds.append({name: timed(argv[name], out[name] / "metrics.jsonl") for name in names})
    return rounds[1:]


def words(*argv: object) -> list[str]:
    return [str(word) for word in argv]


def timed(argv: Sequence[str], told: Path) -> Run:
    """Seconds until the file `told` has a line, and until the end."""
    begin = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (told.exists() and told.stat().st_size):
        if process.poll() is not None:
            sys.exit(f"launch_overhead: ended before its first step: {process.communicate()[1].decode()}")
        time.sleep(LOOK)
    first = time.perf_counter() - begin
    process.communicate()
    return {"first": first, "all": time.perf_counter() - begin}


def table(rounds: Sequence[dict[str, Run]], title: str) -> Table:
    found = Table("", "first step", "all", title=title)
    for name in ("bare", "ddl run"):
        found.add_row(name, *(f"{median(pair[name][key] for pair in rounds):.3f}" for key in ("first", "all")))
    return found


if __name__ == "__main__":
    main()

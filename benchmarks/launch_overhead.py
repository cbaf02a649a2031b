"""The time that `ddl run` adds until the first step: `python -m benchmarks.launch_overhead`.

The baseline, "bare", is the command line that `ddl run --dry-run` prints, run in a shell. Both
start the same ranks and alternate.
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
from cli.bench.goals import Goal

MODEL = """\
model: mlp
data: {name: synthetic, features: [64], samples: 512}
train: {steps: 2, log_every: 1}
"""
POLL = 0.001
"""Seconds between two checks of the file that records the first step."""
DDL = Path(sys.executable).with_name("ddl")

Run = dict[str, float]


def main() -> None:
    options = parse()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="ddl-launch-") as folder:
        rounds = measure(Path(folder), options.np, options.pairs)
    added = median(pair["ddl run"]["first"] - pair["bare"]["first"] for pair in rounds)
    ratio = median(pair["ddl run"]["first"] / pair["bare"]["first"] for pair in rounds)
    goals = [
        Goal("seconds that ddl run adds until the first step", "<=", 1.0, added),
        Goal("seconds until the first step over those of the bare line", "<=", 1.3, ratio),
    ]
    judged = [{**asdict(goal), "met": goal.met} for goal in goals]
    Console().print(table(rounds, f"np={options.np}, load {load:.1f}: median seconds of {options.pairs} pairs"))
    Console().print(tables.goals(judged))
    if options.output:
        record = {"np": options.np, "load": load, "rounds": rounds, "targets": judged}
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launch_overhead", description=__doc__)
    parser.add_argument("--np", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=10, help="runs of each, after one warm-up run")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def measure(folder: Path, np: int, pairs: int) -> list[dict[str, Run]]:
    """Return the runs of each pair. The order within a pair alternates."""
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


def timed(argv: Sequence[str], file: Path) -> Run:
    """Run `argv` and return the seconds until `file` has content, and until the end."""
    begin = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (file.exists() and file.stat().st_size):
        if process.poll() is not None:
            sys.exit(f"launch_overhead: ended before its first step: {process.communicate()[1].decode()}")
        time.sleep(POLL)
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

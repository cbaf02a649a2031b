"""Comparison of every strategy with allreduce.

Run `python -m benchmarks.strategies` on an idle machine; benchmarks/README.md describes it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from cli.bench import tables
from cli.bench.goals import Goal, Row

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "benchmarks" / "strategies.yaml"
SKEWED = "data.partition={name: dirichlet, alpha: 0.5}"
A_QUARTER = "optimizer.lr=0.0125"
"""Learning rate for servers that apply each gradient on its own: four steps per step of
allreduce."""
FAR = ("independent", "federated")
"""Strategies with a weaker goal: no communication during training, or workers with different
classes."""

CLEAN = "allreduce model.args={noise: 0}"
"""The run without noise, in the experiment where one worker sends noise."""

GOAL = "accuracy 0.95"

Rows = dict[str, dict[str, Any]]
"""The rows of a comparison, by strategy."""


@dataclass(frozen=True)
class Experiment:
    """A call of `ddl compare` with np=4."""

    strategies: tuple[str, ...]
    options: tuple[str, ...]


EXPERIMENTS = {
    "accuracy": Experiment(
        (
            "allreduce", "allreduce:op=adasum", "parameter_server", "parameter_server:mode=parameters", f"async_ps:{A_QUARTER}",
            f"ssp:staleness=3:{A_QUARTER}", "local_sgd:period=8", "diloco:period=20", "adaptive", "gossip:topology=exponential",
            "async_gossip", f"federated:{SKEWED}", "independent",
        ),
        ("--budget", "20epochs"),
    ),
    "bytes": Experiment(
        ("allreduce", "parameter_server", "local_sgd:period=8", "diloco:period=50"),
        ("--budget", "400steps", "train.eval_every=20"),
    ),
    "even": Experiment(("allreduce", "async_ps", "async_gossip"), ("--budget", "100steps")),
    "straggler": Experiment(
        ("allreduce", "async_ps", "async_gossip"), ("--budget", "100steps", "--straggler", "3:5")
    ),
    "slow network": Experiment(
        ("allreduce", "allreduce:compression=fp16", "local_sgd:period=8", "diloco:period=20", "adaptive", "async_gossip"),
        (
            "--budget", "15epochs", "--gbps", "1", "--latency-ms", "5", "--target", GOAL.replace(" ", "="),
            "train.eval_every=5", "train.converge={metric: accuracy, value: 0.95}",
        ),
    ),
    "compression": Experiment(
        ("allreduce", *(f"allreduce:compression={name}" for name in ("fp16", "int8", "topk", "powersgd"))),
        ("--budget", "200steps", "--gbps", "1", "--latency-ms", "5", "train.eval_every=10"),
    ),
    "unequal": Experiment(
        ("allreduce", "allreduce:data.partition=weighted"), ("--budget", "6epochs", "--straggler", "3:5")
    ),
    "nonsense": Experiment(
        (
            CLEAN.replace(" ", ":", 1), "allreduce",
            *(f"parameter_server:aggregate={name}:byzantine=1" for name in ("krum", "median", "trimmed_mean")),
        ),
        ("--budget", "10epochs", "model={target: 'benchmarks.nonsense:create'}", "train.eval_every=5"),
    ),
    "clients": Experiment(
        ("federated", *(f"federated:data.partition={dealt}" for dealt in (
            "{name: dirichlet, alpha: 0.5}", "{name: dirichlet, alpha: 0.1}", "by_label",
        ))),
        ("--budget", "20epochs"),
    ),
    "privacy": Experiment(
        ("federated:secure=true", *(f"federated:clip=1:noise={noise}" for noise in (0, 0.1, 0.3, 1))),
        ("--budget", "20epochs", "data.partition=contiguous"),
    ),
    "parts": Experiment(
        (
            "allreduce:data.batch_size=16", "allreduce:parallel.tensor=2:data.batch_size=32",
            "allreduce:parallel.pipeline=2:data.batch_size=4:train.accumulate=8",
        ),
        ("--budget", "6epochs"),
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(f"strategies-{time.strftime('%Y%m%d-%H%M%S')}"))
    parser.add_argument("--only", default=",".join(EXPERIMENTS), help="experiments, separated by commas")
    parser.add_argument("--images", type=Path, help="folder for the pictures, such as docs/images")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True)
    found: dict[str, Rows] = {}
    for name in arguments.only.split(","):
        folder = arguments.output / name.replace(" ", "-")
        print(f"{name}:", flush=True)
        found[name] = compare(EXPERIMENTS[name], folder)
        if arguments.images:
            shrink(folder / "compare.png", arguments.images / f"strategies-{folder.name}.png")
    judged = [asdict(goal) | {"met": goal.met} for goal in goals(found)]
    (arguments.output / "targets.json").write_text(json.dumps(judged, indent=1) + "\n", encoding="utf-8")
    Console(width=None if sys.stdout.isatty() else 140).print(tables.goals(judged))


def compare(experiment: Experiment, folder: Path) -> Rows:
    """Run the experiment and return its rows by strategy, without the strategies that failed."""
    command = [sys.executable, "-m", "cli", "compare", str(MODEL), "--np", "4", "--output", str(folder)]
    subprocess.run(
        [*command, "--strategies", ",".join(experiment.strategies), *experiment.options], cwd=ROOT, check=False
    )
    values = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    return {row["strategy"]: row for row in values["rows"] if not row["ended"].startswith("failed")}


def shrink(source: Path, picture: Path) -> None:
    """Save the picture with 64 colours, which takes a third of the bytes."""
    Image.open(source).convert("RGB").quantize(64).save(picture, optimize=True)


def goals(found: Mapping[str, Rows]) -> list[Goal]:
    """Return the goals of the strategies for which there are measured rows."""
    rows = (row for name, rows_of in GOALS.items() for row in rows_of(found.get(name, {}), found))
    return [Goal(figure, sense, limit, measured) for figure, sense, limit, measured in rows if measured is not None]


def accuracy(rows: Rows, found: Mapping[str, Rows]) -> Iterator[Row]:
    for name, row in rows.items():
        points = 5 if name.startswith(FAR) else 2
        less = 100 * (rows["allreduce"]["accuracy"] - row["accuracy"]) if "allreduce" in rows else None
        yield f"points of accuracy below allreduce: {name}", "<=", points, less
    gaps = (row["largest_gap"] for name, row in rows.items() if name.startswith("ssp"))
    yield "ssp with staleness 3: largest difference of clocks", "<=", 3, next(gaps, None)


def sent(rows: Rows, found: Mapping[str, Rows]) -> Iterator[Row]:
    for name, period in (("local_sgd period=8", 8), ("diloco period=50", 50)):
        if name in rows and "allreduce" in rows:
            share = rows[name]["MB sent"] / rows["allreduce"]["MB sent"]
            yield f"bytes of {name} over allreduce: deviation from 1/{period}", "<=", 0.05, abs(share * period - 1)
    server = over(rows, rows, "seconds", "parameter_server", "allreduce")
    yield "parameter_server's time over allreduce's, one host", "<=", 2, server


def straggler(rows: Rows, found: Mapping[str, Rows]) -> Iterator[Row]:
    even = found.get("even", {})
    for name in ("async_ps", "async_gossip"):
        rate = over(rows, even, "steps/s", name, name)
        yield f"one rank 5 times slower: steps per second over those without it: {name}", ">=", 0.9, rate
    rate = over(rows, even, "steps/s", "allreduce", "allreduce")
    yield "the same for allreduce, which waits", "<=", 0.25, rate


def slow_network(rows: Rows, found: Mapping[str, Rows]) -> Iterator[Row]:
    times = {name: row[f"s to {GOAL}"] for name, row in rows.items() if row.get(f"s to {GOAL}") is not None}
    if "allreduce" in times:
        best = min(times, key=times.__getitem__)
        yield f"1 Gbit/s, 5 ms: time to {GOAL}, {best} over allreduce", "<=", 0.3, times[best] / times["allreduce"]


def nonsense(rows: Rows, found: Mapping[str, Rows]) -> Iterator[Row]:
    clean = rows.get(CLEAN, {}).get("accuracy")
    for name, row in rows.items():
        if clean is not None and name != CLEAN:
            sense, points = (">=", 30) if name == "allreduce" else ("<=", 2)
            yield (
                f"one of 4 workers sends noise: points of accuracy below a run without: {name}",
                sense,
                points,
                100 * (clean - row["accuracy"]),
            )


def over(rows: Rows, base: Rows, column: str, name: str, other: str) -> float | None:
    if name not in rows or other not in base:
        return None
    return float(rows[name][column] / base[other][column])


GOALS: dict[str, Callable[[Rows, Mapping[str, Rows]], Iterator[Row]]] = {
    "accuracy": accuracy,
    "bytes": sent,
    "straggler": straggler,
    "slow network": slow_network,
    "nonsense": nonsense,
}

if __name__ == "__main__":
    main()

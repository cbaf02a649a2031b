"""Agents: how many environment steps they need, and how many they take in a second.

Run `python -m benchmarks.agents --what learn|speed|scale|slow` on an idle machine. Every run is a
`ddl run`; benchmarks/README.md describes the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.bench import tables
from cli.bench.goals import Goal
from cli.compare.entries import StrategyEntry, entries, file_sync

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "agents"
TARGETS = {
    "cartpole": (475, 50_000),
    "cartpole_dqn": (475, 50_000),
    "cartpole_a2c": (475, 100_000),
    "cartpole_reinforce": (475, 100_000),
    "cartpole_impala": (475, 100_000),
    "acrobot": (-100, 60_000),
    "mountain_car_dqn": (-110, None),
    "pendulum_sac": (-200, None),
    "frozen_lake": (1.0, 60_000),
    "frozen_lake_slippery": (0.85, 400_000),
    "taxi": (7.5, 60_000),
    "cliff_walking": (-13, None),
}
"""The return to reach, and the environment steps within which it should be, by example."""
PPO = """\
model: {name: actor_critic, hidden: [64, 64]}
data: {name: gymnasium, env: CartPole-v1, envs: 8, steps: 32, batch_size: 256, episodes: 0}
agent: {name: ppo, gamma: 0.98, lam: 0.8, passes: 20, clip_schedule: linear}
optimizer: {name: Adam, lr: 0.001}
schedule: {name: linear}
train: {env_steps: 100000, clip_norm: 0.5, log_every: 1000, device: cpu}
checkpoint: {every: 1000000000}
"""
SLOW = "data.env=benchmarks.agents_slow:SlowPole"
MOST = "data.max_steps=500"
Record = dict[str, Any]


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="ddl-agents-") as folder:
        {"learn": learn, "speed": speed, "scale": scale, "slow": slow}[options.what](options, Path(folder))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agents", description=__doc__)
    parser.add_argument("--what", choices=("learn", "speed", "scale", "slow"), required=True)
    parser.add_argument("--names", default="cartpole", help="learn: examples, separated by commas; all: every one")
    parser.add_argument(
        "--np", default="1", help="learn: numbers of ranks, such as 1,2,4; the environments are divided"
    )
    parser.add_argument("--strategies", default="allreduce", help="learn: as of ddl compare")
    parser.add_argument("--seeds", default="0,1,2", help="learn: seeds, separated by commas")
    parser.add_argument("--every", type=int, default=2500, help="learn: environment steps between evaluations")
    parser.add_argument("--episodes", type=int, default=100, help="learn: episodes of an evaluation")
    parser.add_argument("--env-steps", type=int, help="environment steps of each run; learn: those of the example")
    parser.add_argument("--rounds", type=int, default=5, help="speed, scale, slow: interleaved rounds")
    parser.add_argument("--sb3", help="speed: a Python that has stable-baselines3")
    parser.add_argument("--output", type=Path, help="JSON lines to append to, one for each run")
    return parser.parse_args()


def learn(options: argparse.Namespace, folder: Path) -> None:
    """Train each example, and find where two evaluations in a row reach its target."""
    names = sorted(TARGETS) if options.names == "all" else options.names.split(",")
    found = []
    for name in names:
        for ranks in map(int, options.np.split(",")):
            for entry in entries(options.strategies):
                for seed in map(int, options.seeds.split(",")):
                    found.append(_learnt(options, folder / f"{len(found)}", name, ranks, entry, seed))
                    record(options, found[-1])
    Console(width=None if sys.stdout.isatty() else 140).print(_learn_table(found))


def _learnt(
    options: argparse.Namespace, folder: Path, name: str, ranks: int, entry: StrategyEntry, seed: int
) -> Record:
    file = EXAMPLES / f"{name}.yaml"
    overrides = [
        *entry.overrides(file_sync(file, [])),
        *_divided(file, ranks),
        f"data.episodes={options.episodes}",
        f"train.eval_env_steps={options.every}",
        f"seed={seed}",
        *([f"train.env_steps={options.env_steps}"] if options.env_steps else []),
    ]
    summary, evaluations = run(folder, file, ranks, overrides)
    value, within = TARGETS[name]
    at = reached(evaluations, value)
    return {
        "name": name,
        "np": ranks,
        "strategy": entry.title,
        "seed": seed,
        "target": value,
        "reached_at": at,
        "met": at is not None and (within is None or at <= within),
        "last": evaluations[-1]["return"],
        "env_steps": summary["env_steps"],
        "seconds": evaluations[-1]["seconds"],
        "env_steps_per_second": summary["env_steps_per_second"],
    }


def _divided(file: Path, ranks: int) -> list[str]:
    """Return overrides that divide the environments and the batch of the example among `ranks`."""
    import yaml

    data = yaml.safe_load(file.read_text(encoding="utf-8"))["data"]
    return [f"data.{name}={max(1, data[name] // ranks)}" for name in ("envs", "batch_size")]


def reached(evaluations: Sequence[Record], value: float) -> int | None:
    """Return the environment steps of the second of two evaluations in a row of at least `value`.

    Several evaluations after equal steps, as at the end of an asynchronous run, count as the last.
    """
    returns = {e["env_steps"]: e["return"] for e in evaluations}
    return next((b for a, b in pairwise(returns) if min(returns[a], returns[b]) >= value), None)


def _learn_table(found: Sequence[Record]) -> Table:
    table = Table("example", "np", "strategy", "target", "met", "reached after env steps", "last return", "env steps/s")
    for key in dict.fromkeys((r["name"], r["np"], r["strategy"]) for r in found):
        runs = [r for r in found if (r["name"], r["np"], r["strategy"]) == key]
        table.add_row(
            *map(str, key),
            f"{runs[0]['target']:g}",
            f"{sum(r['met'] for r in runs)} of {len(runs)}",
            ", ".join("-" if r["reached_at"] is None else f"{r['reached_at']:,}" for r in runs),
            ", ".join(f"{r['last']:.4g}" for r in runs),
            f"{median(r['env_steps_per_second'] for r in runs):,.0f}",
        )
    return table


def speed(options: argparse.Namespace, folder: Path) -> None:
    """Compare PPO on CartPole at np=1 with stable-baselines3's, with one thread each."""
    if not options.sb3:
        sys.exit("agents: --what speed needs --sb3 PYTHON, a Python that has stable-baselines3")
    script = [options.sb3, str(ROOT / "benchmarks" / "agents_sb3.py"), str(options.env_steps or 50_000)]

    def sb3() -> float:
        done = subprocess.run(script, env=_environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"agents: {options.sb3} failed: {done.stderr}")
        return float(json.loads(done.stdout.splitlines()[-1])["env_steps_per_second"])

    rates = [
        {name: sb3() if name == "sb3" else rate(options, folder / f"{number}", 1) for name in order}
        for number, order in _rounds(options, ["ddl", "sb3"])
    ]
    show(options, rates, [("PPO on CartPole, np=1, over stable-baselines3", 1.5, "ddl", "sb3")])


def scale(options: argparse.Namespace, folder: Path) -> None:
    """Compare two ranks with one, with 8 environments on each."""
    kinds = {"CartPole": [], "1 ms a step": [SLOW, MOST]}
    rates = [
        {f"{kind}, np={n}": rate(options, folder / f"{number}-{kind[:2]}-{n}", n, *kinds[kind]) for kind, n in order}
        for number, order in _rounds(options, [(kind, n) for kind in kinds for n in (1, 2)])
    ]
    goals = {"CartPole": 1.6, "1 ms a step": 1.9}
    show(options, rates, [(f"np=2 over np=1, {k}", goals[k], f"{k}, np=2", f"{k}, np=1") for k in kinds])


def slow(options: argparse.Namespace, folder: Path) -> None:
    """Compare two ranks of which one has an environment that is 10 times slower with two that have none.

    Environments take 1 ms a step, the slow one is the last of rank 1. Asynchronous ranks report the
    rate of rank 0.
    """
    usual = json.dumps({"milliseconds": 1})
    lagging = f"data.variants=[{', '.join([usual] * 15 + [json.dumps({'milliseconds': 10})])}]"
    variants = {
        "async_ps, even": ["sync.strategy=async_ps"],
        "async_ps, one slow": ["sync.strategy=async_ps", lagging],
        "allreduce, even": [],
        "allreduce, one slow": [lagging],
        "allreduce, one slow, cut": [lagging, "data.cut_at=0.5"],
    }
    rates = [
        {
            name: rate(options, folder / f"{number}-{place}", 2, SLOW, MOST, *variants[name])
            for place, name in enumerate(order)
        }
        for number, order in _rounds(options, list(variants))
    ]
    goals = [("async_ps, one slow", "async_ps, even", 0.9), ("allreduce, one slow, cut", "allreduce, even", 0.7)]
    show(options, rates, [(f"{slowed} over {even}", limit, slowed, even) for slowed, even, limit in goals])


def _rounds(options: argparse.Namespace, variants: list[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number of each round and its variants, in turn forwards and backwards."""
    for number in range(options.rounds):
        yield number, variants[:: -1 if number % 2 else 1]


def rate(options: argparse.Namespace, folder: Path, ranks: int, *overrides: str) -> float:
    """Return the environment steps per second of PPO on `ranks` ranks, which take as many steps each."""
    file = folder.with_suffix(".yaml")
    file.write_text(PPO, encoding="utf-8")
    length = f"train.env_steps={(options.env_steps or 50_000) * ranks}"
    return float(run(folder, file, ranks, [length, *overrides])[0]["env_steps_per_second"])


def run(folder: Path, file: Path, ranks: int, overrides: Sequence[str]) -> tuple[Record, list[Record]]:
    """Run `file` by `ddl run` and return its summary and its evaluations."""
    command = [sys.executable, "-m", "cli", "run", "--np", str(ranks), "--quiet", "--output", str(folder)]
    done = subprocess.run(
        [*command, str(file), *overrides], cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"agents: ddl run {file.name} {' '.join(overrides)} failed: {done.stderr}")
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary, [line for line in lines if line["kind"] == "eval"]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def show(
    options: argparse.Namespace, rates: Sequence[dict[str, float]], asked: Sequence[tuple[str, float, str, str]]
) -> None:
    """Print the median rates, and the medians of the ratios within rounds beside their goals."""
    for one in rates:
        record(options, {"what": options.what, **one})
    goals = [Goal(what, ">=", limit, median(one[a] / one[b] for one in rates)) for what, limit, a, b in asked]
    table = Table("", "env steps/s", title=f"medians of {len(rates)} rounds, load {os.getloadavg()[0]:.1f}")
    for name in rates[0]:
        table.add_row(name, f"{median(one[name] for one in rates):,.0f}")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(tables.goals([{**asdict(goal), "met": goal.met} for goal in goals]))


def record(options: argparse.Namespace, values: Record) -> None:
    """Print one JSON line, and append it to `--output`."""
    line = json.dumps(values)
    print(line, flush=True)
    if options.output:
        with options.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()

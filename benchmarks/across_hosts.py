"""Bytes and time of a training step across hosts.

Run `python -m benchmarks.across_hosts` as root; benchmarks/README.md describes it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.bench import tables
from cli.bench.goals import Goal
from tests.cluster.hosts import Hosts, missing

ROOT = Path(__file__).parents[1]
OURS = ["ddl_mpi", *(f"ddl_mpi+{name}" for name in ("fp16", "bf16", "int8", "topk", "powersgd"))]
VARIANTS = ["local", *OURS, "mpi_allreduce", "ddp", "ddp+fp16"]
SECONDS = 600


@dataclass(frozen=True)
class Layout:
    """Hosts and ranks per host.

    `rate` limits what a host sends, in the notation of tc; None is no limit.
    """

    hosts: int
    ranks_each: int
    rate: str | None = None

    @classmethod
    def parse(cls, text: str) -> Layout:
        hosts, ranks_each = map(int, text.split("x"))
        return cls(hosts, ranks_each)

    def __str__(self) -> str:
        return f"{self.hosts} hosts x {self.ranks_each} ranks, {self.rate or 'no limit on links'}"


@dataclass(frozen=True)
class Request:
    """The measurement of the ranks: `rounds` blocks of `steps` steps for each of `variants`.

    A variant is one of `ddl bench step`, or `ddl_mpi+NAME` or `ddp+fp16`, which compress. Rank 0
    writes the result to the file `output`.
    """

    variants: list[str]
    workload: str
    optimizer: str
    rounds: int
    steps: int
    output: str

    def to_text(self) -> str:
        return json.dumps(asdict(self))


def main() -> None:
    options = parse()
    if missing():
        sys.exit(f"across_hosts: {missing()}")
    layouts = [*options.wire, *(replace(layout, rate=options.rate) for layout in options.timed)]
    found = [summarise(layout, measure(layout, options)) for layout in layouts]
    for case in found:
        Console().print(table(case))
        Console().print(tables.goals(case["targets"]))
    if options.output:
        options.output.write_text(json.dumps({"options": vars(options), "cases": found}, indent=1, default=str) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.across_hosts", description=__doc__)
    wire = [Layout(2, 1), Layout(3, 1), Layout(2, 2), Layout(3, 2)]
    several: dict[str, Any] = {"nargs": "*", "type": Layout.parse, "metavar": "HOSTSxRANKS"}
    parser.add_argument("--wire", **several, default=wire, help="layouts whose bytes are counted")
    parser.add_argument("--timed", **several, default=[Layout(2, 1)], help="layouts whose links are limited to --rate")
    parser.add_argument("--rate", default="1gbit", help="limit of a host's sends, in the notation of tc")
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--workload", default="mlp", help="a workload of hvd_train/bench/workloads.py")
    parser.add_argument("--optimizer", default="SGD")
    parser.add_argument("--rounds", type=int, default=7, help="blocks of each variant, interleaved")
    parser.add_argument("--steps", type=int, default=3, help="steps of a block")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def measure(layout: Layout, options: argparse.Namespace) -> dict[str, Any]:
    """Run `ddl run` on n1 and return the result of the ranks."""
    with Hosts(layout.hosts) as hosts:
        hosts.shape(layout.rate)
        output = hosts.folder / "measured.json"
        request = Request(
            options.variants, options.workload, options.optimizer, options.rounds, options.steps, str(output)
        )
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "cli",
            "run",
            "--hostfile",
            hosts.hostfile(layout.hosts, layout.ranks_each),
        ]
        command += ["-x", "OMP_NUM_THREADS=1", "-x", f"PYTHONPATH={ROOT}"]
        command += ["-m", "benchmarks.across_hosts_rank", request.to_text()]
        done = hosts.run("n1", command, cwd=ROOT, timeout=SECONDS, env={"PYTHONPATH": str(ROOT)})
        if done.returncode:
            sys.exit(f"across_hosts: {layout}: {done.stdout}{done.stderr}")
        found: dict[str, Any] = json.loads(output.read_text())
        return found


def summarise(layout: Layout, measured: dict[str, Any]) -> dict[str, Any]:
    """Add figures and goals to `measured`.

    Figures are medians over rounds: milliseconds, and the bytes of the busiest host over `ideal`.
    """
    hosts = len(measured["hosts"])
    ideal = 2 * (hosts - 1) / hosts * measured["payload"]
    figures = {
        name: {
            "milliseconds": 1e3 * median(block["seconds"] for block in blocks),
            "wire": median(max(block["sent"].values()) for block in blocks) / ideal,
        }
        for name, blocks in measured["variants"].items()
    }
    case = {"layout": str(layout), "ideal": ideal, "figures": figures, **measured}
    rows = wire_goals(case) if layout.rate is None else time_goals(case)
    goals = [Goal(figure, "<=", limit, value) for figure, limit, value in rows if value is not None]
    return {**case, "targets": [{**asdict(goal), "met": goal.met} for goal in goals]}


def wire_goals(case: dict[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    for name, share in {"ddl_mpi": 1, "ddl_mpi+fp16": 0.5, "ddl_mpi+bf16": 0.5}.items():
        if name in case["figures"]:
            yield (
                f"bytes of {name}: deviation from {share} x ideal",
                0.03,
                abs(case["figures"][name]["wire"] / share - 1),
            )


def time_goals(case: dict[str, Any]) -> Iterator[tuple[str, float, float | None]]:
    yield "ddl: fp16 over float32", 0.6, over(case, "ddl_mpi+fp16", "ddl_mpi")
    yield "ddl over gloo DDP", 1, over(case, "ddl_mpi", "ddp")
    yield "ddl over gloo DDP, both fp16", 1, over(case, "ddl_mpi+fp16", "ddp+fp16")


def over(case: dict[str, Any], name: str, other: str) -> float | None:
    """Return the median ratio of two variants' times over rounds, or None without both."""
    blocks, others = case["variants"].get(name, ()), case["variants"].get(other, ())
    return (
        median(a["seconds"] / b["seconds"] for a, b in zip(blocks, others, strict=True)) if blocks and others else None
    )


def table(case: dict[str, Any]) -> Table:
    title = f"{case['layout']}: a step that reduces {case['payload'] / 1e6:.1f} MB (load {case['machine']['load']:.1f})"
    found = Table("variant", "ms", "bytes / ideal", "over ddl", "over DDP", title=title)
    for name, figures in case["figures"].items():
        ratios = (over(case, name, other) for other in ("ddl_mpi", "ddp"))
        cells = ("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        found.add_row(name, f"{figures['milliseconds']:.1f}", f"{figures['wire']:.4f}", *cells)
    return found


if __name__ == "__main__":
    main()

"""The project's goals for its engines, compared with measured figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from cli.bench.figures import Case, Run, mean_ratio, median_ratio

Sense = Literal["<=", ">="]

Row = tuple[str, Sense, float, float | None]
"""Figure, sense, limit and measured value of a goal; a value of None means that nothing was
measured."""

FLOOR = {
    "mlp AdamW": 0.97, "transformer AdamW": 0.99, "conv AdamW": 1.0, "small AdamW": 1.10,
    "mlp SGD": 1.05, "transformer SGD": 1.01, "conv SGD": 1.02, "small SGD": 1.10,
}  # fmt: skip
"""Largest time of a step relative to the same step without communication."""


@dataclass(frozen=True)
class Goal:
    """A limit on a measured figure."""

    figure: str
    sense: Sense
    limit: float
    measured: float

    @property
    def met(self) -> bool:
        return self.measured <= self.limit if self.sense == "<=" else self.measured >= self.limit


def goals(what: str, run: Run) -> list[Goal]:
    """Return the goals of `what` on this number of ranks whose figures `run` measured."""
    rows_of = _GOALS.get((what, run["world_size"]))
    rows = rows_of({case["case"]: case for case in run["cases"]}) if rows_of else ()
    return [Goal(figure, sense, limit, value) for figure, sense, limit, value in rows if value is not None]


def _allreduce(cases: dict[str, Case]) -> Iterable[Row]:
    large, small = cases.get(f"{64 * 2**20}"), cases.get(f"{4 * 2**10}")
    if large:
        yield "64 MiB in the arena: gloo's time over ours", ">=", 5, median_ratio(large, "gloo", "ddl_mpi_arena")
        yield "64 MiB in the arena: ours over one memcpy", "<=", 2.5, median_ratio(large, "ddl_mpi_arena", "memcpy")
        yield "64 MiB, ordinary tensor: gloo's time over ours", ">=", 2, median_ratio(large, "gloo", "ddl_mpi")
    if small:
        seconds = small["variants"].get("ddl_mpi_arena", {}).get("seconds")
        yield "4 KiB in the arena: microseconds", "<=", 20, seconds and seconds["median"] * 1e6
        yield "4 KiB in the arena: gloo's time over ours", ">=", 10, median_ratio(small, "gloo", "ddl_mpi_arena")


def _step(cases: dict[str, Case]) -> Iterable[Row]:
    for name, limit in FLOOR.items():
        if name in cases:
            yield f"step over the floor: {name}", "<=", limit, median_ratio(cases[name], "ddl_mpi", "local")
    every = f"geometric mean of {len(cases)}"
    yield f"gloo DDP's step over ours, {every}", ">=", 1.8, mean_ratio([*cases.values()], "ddp", "ddl_mpi")
    ours_over_horovod = mean_ratio([*cases.values()], "ddl_torch", "horovod")
    yield f"step with DistributedOptimizer: ours over Horovod's, {every}", "<=", 0.85, ours_over_horovod
    yield f"Horovod's step over ours, {every}", ">=", 1.3, mean_ratio([*cases.values()], "horovod", "ddl_mpi")


def _calls(cases: dict[str, Case]) -> Iterable[Row]:
    if "100" in cases:
        yield "100 named tensors: ours over Horovod's", "<=", 0.7, median_ratio(cases["100"], "ddl_torch", "horovod")
    if "1" in cases:
        seconds = cases["1"]["variants"].get("ddl_torch", {}).get("seconds")
        yield "one all-reduce of 1 KiB: milliseconds", "<=", 0.3, seconds and seconds["median"] * 1e3


def _optimizer_state(cases: dict[str, Case]) -> Iterable[Row]:
    for name, case in cases.items():
        if name.endswith("AdamW") and {"ddl_mpi", "local"} <= case["variants"].keys():
            ours, whole = (case["variants"][v]["state_bytes"] for v in ("ddl_mpi", "local"))
            yield f"optimizer state of a rank over the whole: {name}", "<=", 1.05 / 4, ours / whole


def _oversubscribed(cases: dict[str, Case]) -> Iterable[Row]:
    every = f"geometric mean of {len(cases)}"
    yield f"8 ranks: our step over gloo DDP's, {every}", "<=", 0.7, mean_ratio([*cases.values()], "ddl_mpi", "ddp")


_GOALS: dict[tuple[str, int], Callable[[dict[str, Case]], Iterable[Row]]] = {
    ("allreduce", 2): _allreduce,
    ("step", 2): _step,
    ("step", 4): _optimizer_state,
    ("step", 8): _oversubscribed,
    ("horovod", 2): _calls,
}

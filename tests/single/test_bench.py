"""The pure parts of `ddl bench`: figures, goals, tables, pictures and checks."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cli.bench import cases, figures, report
from cli.bench.goals import Goal, goals
from cli.commands import bench
from cli.output import packages
from hvd_train.bench.allreduce.base import AllReduceCase, AllReduceVariant
from hvd_train.bench.api.base import Calls, NamedSums
from hvd_train.bench.measure import order
from hvd_train.bench.request import BenchRequest
from hvd_train.bench.step.base import CHECKED_STEPS, StepCase, Stepper, Task
from hvd_train.bench.workloads import WORKLOADS
from hvd_train.errors import UserError
from hvd_train.text.display import console

MIB64, KIB4 = str(64 * 2**20), str(4 * 2**10)


def case(name: str, **rounds: list[float]) -> dict[str, Any]:
    constant = {"iterations": 3, "bytes_sent": None, "samples": 32, "state_bytes": 100}
    return {"case": name, "unavailable": {}, "variants": {v: {**constant, "rounds": r} for v, r in rounds.items()}}


def run(world_size: int, *cases: dict[str, Any]) -> dict[str, Any]:
    return {"world_size": world_size, "cases": list(cases)}


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], (3, 3, 3)), ([1.0, 2.0], (1.25, 1.5, 1.75)), ([5.0, 1.0, 4.0, 2.0, 3.0], (2, 3, 4))],
)
def test_quartiles(values: list[float], expected: tuple[float, ...]) -> None:
    assert tuple(figures.quartiles(values).values()) == expected


def test_a_ratio_is_formed_within_a_round() -> None:
    """The second round is ten times slower for both. The ratio of medians would be 2, or 20."""
    found = case("c", ours=[1.0, 10.0, 1.0], ddp=[2.0, 20.0, 3.0])
    assert figures.median_ratio(found, "ddp", "ours") == 2
    assert figures.median_ratio(found, "ddp", "horovod") is None
    summary = figures.summarise(found, {"floor": "ours", "ours": "horovod"})["variants"]["ddp"]
    assert summary["over_floor"] == {"lower": 2, "median": 2, "upper": 2.5}
    assert summary["seconds"]["median"] == 3
    assert "over_ours" not in summary


def test_the_geometric_mean_needs_every_case() -> None:
    cases = [case("a", ours=[1.0], ddp=[2.0]), case("b", ours=[1.0], ddp=[8.0])]
    assert figures.mean_ratio(cases, "ddp", "ours") == pytest.approx(4)
    assert figures.mean_ratio([*cases, case("c", ours=[1.0])], "ddp", "ours") is None
    assert figures.mean_ratio([], "ddp", "ours") is None


def test_speed_up_and_efficiency() -> None:
    first, third = figures.points({2: 100.0, 4: 150.0})[0], figures.points({2: 100.0, 4: 150.0})[1]
    assert (first["speedup"], first["efficiency"]) == (2, 1)
    assert (third["speedup"], third["efficiency"]) == (3, 0.75)


@pytest.mark.parametrize(
    ("nbytes", "text"), [(1024, "1 KiB"), (407080, "397.5 KiB"), (2**20, "1 MiB"), (256 * 2**20, "256 MiB")]
)
def test_sizes_for_people(nbytes: int, text: str) -> None:
    assert figures.size(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5e-7, "0.25 us"), (4e-6, "4 us"), (0.00123, "1.23 ms"), (1.5, "1.5 s")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert figures.duration(seconds) == text


def test_goals_are_those_of_measured_figures() -> None:
    steps = run(2, case("mlp AdamW", local=[1.0], ddl_mpi=[0.98], ddp=[1.8]))
    assert [(t.figure, t.measured, t.met) for t in goals("step", steps)] == [
        ("step over the floor: mlp AdamW", 0.98, False),
        ("gloo DDP's step over ours, geometric mean of 1", pytest.approx(1.8 / 0.98), True),
    ]
    assert goals("step", {**steps, "world_size": 3}) == []
    assert goals("scaling", steps) == []


def test_goals_of_all_reduces() -> None:
    large = case(MIB64, ddl_mpi_arena=[6.0], ddl_mpi=[12.0], gloo=[36.0], memcpy=[4.0])
    small = case(KIB4, ddl_mpi_arena=[15e-6], gloo=[120e-6])
    found = report.result("allreduce", 1, [run(2, large, small)])["targets"]
    assert [(t["measured"], t["met"]) for t in found] == [
        (6, True), (1.5, True), (3, True), (pytest.approx(15), True), (pytest.approx(8), False),
    ]  # fmt: skip


def test_goals_of_more_ranks() -> None:
    found = case("small AdamW", local=[1.0], ddl_mpi=[1.4], ddp=[2.0])
    found["variants"]["ddl_mpi"]["state_bytes"] = 25
    assert [(t.measured, t.met) for t in goals("step", run(4, found))] == [(0.25, True)]
    assert [(t.measured, t.met) for t in goals("step", run(8, found))] == [(pytest.approx(0.7), True)]


def test_goals_of_horovods_api() -> None:
    calls = [case("1", ddl_torch=[2e-4], horovod=[1e-3]), case("100", ddl_torch=[8e-4], horovod=[1e-3])]
    found = report.result("horovod", 1, [run(2, *calls)])["targets"]
    assert [(t["measured"], t["met"]) for t in found] == [(pytest.approx(0.8), False), (pytest.approx(0.2), True)]
    steps = run(2, case("mlp SGD", ddl_torch=[4.0], horovod=[5.0]), case("mlp AdamW", ddl_torch=[0.9], horovod=[1.0]))
    (goal,) = goals("step", steps)
    assert (goal.measured, goal.met) == (pytest.approx(0.72**0.5), True)


@pytest.mark.parametrize(("sense", "met"), [("<=", (True, True, False)), (">=", (False, True, True))])
def test_a_limit_itself_is_met(sense: Any, met: tuple[bool, ...]) -> None:
    assert tuple(Goal("f", sense, 1.0, value).met for value in (0.9, 1.0, 1.1)) == met


@pytest.mark.parametrize(
    ("what", "runs"),
    [
        ("allreduce", [run(2, case("1024", memcpy=[1e-6, 2e-6], ddl_mpi_arena=[2e-6, 2e-6]))]),
        ("step", [run(2, case("small SGD", local=[1.0, 1.1], ddl_mpi=[0.9, 1.2]), case("mlp SGD", local=[1.0, 1.0]))]),
        ("scaling", [run(n, case("mlp AdamW", local=[1.0], ddl_mpi=[1.0 + 0.1 * n])) for n in (1, 2)]),
        (
            "horovod",
            [run(2, case("1", ddl_mpi=[1e-4, 2e-4], ddl_torch=[1e-4, 2e-4]), case("100", ddl_torch=[1e-3, 1e-3]))],
        ),
    ],
)
def test_a_report_has_its_three_forms(what: str, runs: list[dict[str, Any]], tmp_path: Path) -> None:
    runs[0]["cases"][0]["unavailable"] = {"horovod": "ImportError: No module named 'horovod'"}
    found = report.result(what, 2, runs)
    report.save(found, tmp_path / "new" / "folder")
    assert json.loads((tmp_path / "new" / "folder" / "bench.json").read_text()) == found
    assert (tmp_path / "new" / "folder" / "bench.png").read_bytes().startswith(b"\x89PNG")
    stream = io.StringIO()
    report.show(found, console(file=stream, width=140))
    assert "ddl_mpi" in stream.getvalue()
    assert "horovod was not measured: ImportError: No module named 'horovod'" in stream.getvalue()


def test_rounds_are_in_changing_order_equal_on_all_ranks() -> None:
    orders = [order(["a", "b", "c"], number) for number in range(30)]
    assert orders == [order(["a", "b", "c"], number) for number in range(30)]
    assert {o[0] for o in orders} == {"a", "b", "c"}
    assert all(sorted(o) == ["a", "b", "c"] for o in orders)


def test_a_request_survives_the_command_line() -> None:
    request = BenchRequest("step", 2, ["local"], ["mlp SGD"], 3, "/tmp/a b.json", None)
    assert BenchRequest.from_text(request.to_text()) == request


@pytest.mark.parametrize(
    ("what", "sizes", "workloads", "expected"),
    [
        ("allreduce", "4M,1K,12,1K", None, ["12", "1024", "4194304"]),
        ("step", None, "small", ["small SGD", "small AdamW"]),
        ("scaling", None, None, ["mlp AdamW"]),
        ("horovod", None, None, ["1", "100"]),
    ],
)
def test_cases(what: str, sizes: str | None, workloads: str | None, expected: list[str]) -> None:
    assert cases.select_cases(what, sizes, workloads) == expected


@pytest.mark.parametrize("text", ["", "K", "3", "4X", "-4", "1.5K", "4 K"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match=f"'{text}' is not a size"):
        cases.parse_size(text)


def test_sizes_that_exceed_the_memory_of_this_machine_are_refused() -> None:
    cases.check_memory(["4096", "65536"], variants=2, ranks=2, available=65536 * 8)
    with pytest.raises(UserError, match=r"--sizes: an all-reduce of 65536 bytes needs 0\.0 GiB .* \(2 ranks\)"):
        cases.check_memory(["4096", "65536"], variants=2, ranks=2, available=65536 * 8 - 1)


def test_a_step_comes_with_its_floor() -> None:
    assert cases.select_variants("step", "ddp") == ["local", "ddp"]
    assert cases.select_variants("scaling", None) == ["local", "ddl_mpi", "ddp"]
    assert cases.select_variants("allreduce", "gloo") == ["gloo"]
    assert {"local", "ddl_mpi", "ddl_horovod", "ddp", "ddp_zero", "horovod"} <= set(cases.select_variants("step", None))


def test_what_draws_is_looked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; .*pip install -e '\.\[bench\]'"):
        bench.command("step")


class Times(AllReduceVariant):
    """A reducer that multiplies by `ranks`, the sum of equal `x` over that many ranks."""

    def __init__(self, ranks: int, numel: int) -> None:
        self.ranks, self.x = ranks, torch.zeros(numel)

    def run(self) -> None:
        self.x *= self.ranks


@pytest.mark.parametrize(("factor", "wrong"), [(3, None), (2, "1000 of 1004 sums are wrong")])
def test_an_all_reduce_is_checked(factor: int, wrong: str | None) -> None:
    """This is the first of two ranks: its pattern counts once, the other's twice.

    Four elements are zero.
    """
    world: Any = SimpleNamespace(rank=0, size=2)
    reducer = Times(factor, 1004)
    assert AllReduceCase(4016).check(reducer, world) == wrong
    assert not reducer.x.any()


@pytest.mark.parametrize(("factor", "wrong"), [(3, None), (2, "4 of 4 sums are wrong, the first tensor.0")])
def test_named_sums_are_checked(factor: int, wrong: str | None) -> None:
    """This is the first of two ranks, as above. Each run uses another order."""
    world: Any = SimpleNamespace(rank=0, size=2)
    issued: list[str] = []

    def allreduce_async_(x: torch.Tensor, op: object, name: str) -> int:
        issued.append(name)
        x *= factor
        return len(issued)

    hvd = SimpleNamespace(allreduce_async_=allreduce_async_, synchronize=lambda handle: None, Sum=1)
    calls = Calls(hvd, world, 4)
    assert NamedSums(4).check(calls, world) == wrong
    assert not any(x.any() for x in calls.tensors.values())
    for _ in range(5):
        calls.run()
    assert sorted(issued[:4]) == [f"tensor.{i}" for i in range(4)]
    assert len({tuple(issued[i : i + 4]) for i in range(0, len(issued), 4)}) > 1


@pytest.mark.parametrize(("optimizer", "whole"), [("SGD", True), ("SGD", False), ("AdamW", True), ("AdamW", False)])
def test_a_step_is_checked_against_one_process(optimizer: str, whole: bool) -> None:
    world: Any = SimpleNamespace(rank=0, size=2)
    task = Task(WORKLOADS["small"], optimizer)
    both = tuple(torch.cat(parts) for parts in zip(task.batch(0), task.batch(1), strict=True))
    stepper = Stepper(task, both if whole else task.batch(0))  # type: ignore[arg-type]
    problem = StepCase("small", task, world).check(stepper, world)
    assert problem is None if whole else str(problem).startswith(f"after {CHECKED_STEPS} steps the parameters differ")

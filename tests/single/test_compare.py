"""`ddl compare`: its options, and its reports of recorded runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes

from cli.compare import entries, outcome
from cli.compare.curves import curve
from cli.compare.entries import StrategyEntry, budget
from cli.compare.outcome import Outcome
from cli.compare.plot import picture
from cli.compare.report import Report
from cli.compare.series import Series
from cli.launch.emulation import Emulation
from cli.runs import statistics
from hvd_train.comm.communicator import Communicator
from hvd_train.compute.metrics import episodes
from hvd_train.errors import UserError
from tests.bodies import training
from tests.engines import threads

MODEL = "model: mlp\ndata: digits\n"
ENDLESS = ["train.steps=null", "train.env_steps=null", "train.epochs=1000000000"]


def model(folder: Path, text: str = "") -> Path:
    file = folder / "model.yaml"
    file.write_text(MODEL + text)
    return file


def series(file: Path, strategies: str, *overrides: str, budget: str | None = None) -> Series:
    launch = {"world_size": 2, "engine": "mpi", "emulate": None}
    return Series(file, overrides, entries.entries(strategies), budget, file.parent / "out", launch)


def test_strategies_with_their_options() -> None:
    found = entries.entries("allreduce,local_sgd:period=8,diloco:period=50:outer_lr=0.7,x:a=[1,2]:b={c: 1}")
    assert [(e.name, e.options) for e in found] == [
        ("allreduce", ()),
        ("local_sgd", ("period=8",)),
        ("diloco", ("period=50", "outer_lr=0.7")),
        ("x", ("a=[1,2]", "b={c: 1}")),
    ]
    assert [e.title for e in found[:2]] == ["allreduce", "local_sgd period=8"]
    assert [e.folder for e in found] == [
        "allreduce",
        "local_sgd-period=8",
        "diloco-period=50-outer_lr=0.7",
        "x-a=-1-2-b=-c-1",
    ]


def test_overrides_of_a_strategy_keep_what_all_have_in_common() -> None:
    of_file = {"strategy": "local_sgd", "period": 4, "compression": "fp16", "fusion_mb": 1}
    entry = StrategyEntry("", "diloco", ("period=50", "optimizer.lr=0.1", "data.partition=dirichlet", "seed=3"))
    whole, *others = entry.overrides(of_file)
    assert json.loads(whole.removeprefix("sync=")) == {"compression": "fp16", "fusion_mb": 1, "strategy": "diloco"}
    assert others == ["sync.period=50", "optimizer.lr=0.1", "data.partition=dirichlet", "seed=3"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10epochs", ["train.steps=null", "train.env_steps=null", "train.epochs=10"]),
        ("1 epoch", ["train.steps=null", "train.env_steps=null", "train.epochs=1"]),
        ("500steps", ["train.env_steps=null", "train.epochs=null", "train.steps=500"]),
        ("500env_steps", ["train.steps=null", "train.epochs=null", "train.env_steps=500"]),
        ("1.5s", [*ENDLESS, "train.max_seconds=1.5"]),
        ("2GB", [*ENDLESS, "train.max_bytes=2000000000"]),
        ("0.5MB", [*ENDLESS, "train.max_bytes=500000"]),
    ],
)
def test_budgets(text: str, expected: list[str]) -> None:
    assert budget(text) == expected


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: budget("10"), "--budget: '10' is no budget; expected epochs, steps, env_steps, seconds or bytes"),
        (lambda: budget("0s"), "--budget: '0s' is no budget"),
        (lambda: budget("1.5epochs"), "--budget: '1.5epochs' is not whole"),
        (lambda: entries.goal("accuracy"), "--target: 'accuracy' is no goal; expected METRIC=VALUE"),
        (lambda: entries.goal("accuracy=high"), "--target: 'accuracy=high' is no goal"),
        (lambda: entries.entries("a,,b"), "--strategies: 'a,,b' is no strategy; expected NAME or NAME:OPTION=VALUE"),
        (
            lambda: entries.entries("a:period"),
            "--strategies: 'a:period' is no strategy; expected NAME or NAME:OPTION=VALUE",
        ),
        (lambda: entries.entries("a:=3"), "--strategies: 'a:=3' is no strategy; expected NAME"),
        (lambda: entries.entries("a,b:c=1,a"), "--strategies: 'a' is listed twice"),
        (lambda: Emulation(-1).section(2), "--latency-ms: expected milliseconds, got -1"),
        (lambda: Emulation(gbps=0).section(2), "--gbps: expected Gbit/s above 0, got 0"),
        (lambda: Emulation(straggler="1").section(2), "--straggler: expected RANK:FACTOR"),
        (lambda: Emulation(straggler="1:0.5").section(2), "such as 3:5, got '1:0.5'"),
        (lambda: Emulation(straggler="2:5").section(2), "--straggler: no rank 2 among 2; expected 0 to 1"),
    ],
)
def test_a_bad_option_is_an_error(ask: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        ask()


def test_emulation_is_what_was_written() -> None:
    assert Emulation().section(4) is None
    expected = {"latency_ms": 5.0, "gbps": 1.0, "straggler": 3, "factor": 5.0}
    assert Emulation(5.0, 1.0, "3:5").section(4) == expected


def test_a_strategy_replaces_that_of_the_file(tmp_path: Path) -> None:
    file = model(tmp_path, "sync: {strategy: local_sgd, period: 4, compression: fp16}\n")
    series(file, "allreduce,local_sgd:period=2").check()
    series(file, "allreduce", "sync.period=2").check()


@pytest.mark.parametrize(
    ("strategies", "budget", "message"),
    [
        ("allreduce,localsgd", None, "no 'localsgd' here; did you mean 'local_sgd'?"),
        ("allreduce,local_sgd:perod=2", None, "sync.perod: unknown key; did you mean 'period'?"),
        ("allreduce", "60s", "the schedule 'cosine' needs the length of a run, which '60s' does not give"),
    ],
)
def test_mistakes_are_reported_before_the_first_run(
    strategies: str, budget: str | None, message: str, tmp_path: Path
) -> None:
    file = model(tmp_path, "schedule: {name: cosine}\n")
    with pytest.raises(UserError, match=re.escape(message)):
        series(file, strategies, budget=budget).check()
    series(file, "allreduce", budget="5epochs").check()


def recorded(folder: Path, bytes_of_ranks: list[int | None], sent: list[int], **summary: Any) -> Path:
    """Write a run with an evaluation every ten steps and two seconds, with accuracies 0.5, 0.7, ..."""
    folder.mkdir()
    evaluations = [
        {"kind": "eval", "step": 10 * n, "seconds": 2.0 * n, "bytes_sent": b, "accuracy": 0.3 + 0.2 * n, "loss": 1 / n}
        for n, b in enumerate(sent, 1)
    ]
    lines = [{"kind": "train", "step": 5, "loss": 3}, *evaluations]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    last = evaluations[-1]
    found = {
        "eval": {"loss": last["loss"], "accuracy": last["accuracy"]},
        "ended": "length",
        "steps_per_second": 5.0,
        "bytes_of_ranks": bytes_of_ranks,
        **summary,
    }
    (folder / "summary.json").write_text(json.dumps(found))
    return folder


@pytest.fixture
def outcomes(tmp_path: Path) -> list[Outcome]:
    first = recorded(tmp_path / "1", [4_000_000, 4_000_000], [2_000_000, 5_000_000, 8_000_000])
    gap = {"staleness": {"mean": 1.5, "max": 4, "histogram": {"0": 1}}, "largest_gap": 3}
    alone = recorded(tmp_path / "2", [1_000_000, 3_000_000, None], [500_000, 1_000_000], **gap)
    return [
        outcome.read("allreduce", first, None),
        outcome.read("ssp staleness=3", alone, None),
        outcome.read("broken", tmp_path / "3", "no such thing"),
    ]


def test_bytes_of_a_rank_that_went_alone_are_corrected_at_the_end(outcomes: list[Outcome]) -> None:
    assert [e["bytes_sent"] for e in outcomes[0].evaluations] == [2_000_000, 5_000_000, 8_000_000]
    assert [e["bytes_sent"] for e in outcomes[1].evaluations] == [2_000_000, 4_000_000]


def test_a_metric_that_was_no_number_is_left_out(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "1", [1], [1])
    for name in ("metrics.jsonl", "summary.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"loss": 1.0', '"loss": null'))
    found = outcome.read("allreduce", folder, None)
    assert found.metrics == {"accuracy": 0.5}
    assert found.first("loss", 1.0) is None
    outcome.rows([found], ("loss", 1.0))


def test_a_run_without_evaluations_has_nothing_to_compare(tmp_path: Path) -> None:
    recorded(tmp_path / "1", [0], [0]).joinpath("metrics.jsonl").unlink()
    assert "no held-out samples" in str(outcome.read("allreduce", tmp_path / "1", None).failure)


def test_rows(outcomes: list[Outcome]) -> None:
    first, second, third = outcome.rows(outcomes, ("accuracy", 0.7))
    assert first == {
        "strategy": "allreduce",
        "loss": pytest.approx(1 / 3),
        "accuracy": pytest.approx(0.9),
        "steps": 30,
        "seconds": 6.0,
        "over first": 1.0,
        "steps/s": 5.0,
        "MB sent": 8.0,
        "bytes over first": 1.0,
        "s to accuracy 0.7": 4.0,
        "MB to accuracy 0.7": 5.0,
        "staleness mean": None,
        "staleness max": None,
        "largest_gap": None,
        "ended": "length",
    }
    assert (second["over first"], second["bytes over first"]) == (pytest.approx(2 / 3), 0.5)
    assert (second["staleness mean"], second["staleness max"], second["largest_gap"]) == (1.5, 4, 3)
    assert third == {**dict.fromkeys(first), "strategy": "broken", "ended": "failed: no such thing"}


def test_a_goal_that_no_run_reaches_is_an_empty_column(outcomes: list[Outcome]) -> None:
    assert [row["s to loss 0.01"] for row in outcome.rows(outcomes, ("loss", 0.01))] == [None] * 3
    assert outcomes[0].first("loss", 0.6) == outcomes[0].evaluations[1], "a loss improves by falling"


def test_rows_are_relative_to_the_first_run_that_succeeds(outcomes: list[Outcome]) -> None:
    rows = outcome.rows([outcomes[2], outcomes[1], outcomes[0]], None)
    assert [row.get("bytes over first") for row in rows] == [None, 1.0, 2.0]
    assert [list(row) for row in outcome.rows(outcomes[2:], None)] == [["strategy", "ended"]]


def lines(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {str(line.get_label()): list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()}  # type: ignore[arg-type]


def test_picture(outcomes: list[Outcome]) -> None:
    figure = picture(outcomes, "accuracy", "title", 0.7)
    seconds, sent, steps = (lines(axes) for axes in figure.axes)
    assert [axes.get_xlabel() for axes in figure.axes] == ["seconds of training", "MB sent by all ranks", "steps"]
    assert [axes.get_xscale() for axes in figure.axes] == ["linear", "log", "linear"]
    assert seconds["allreduce"] == [(2, 0.5), (4, 0.7), (6, pytest.approx(0.9))]
    assert sent["allreduce"] == [(2, 0.5), (5, 0.7), (8, pytest.approx(0.9))]
    assert steps["ssp staleness=3"] == [(10, 0.5), (20, 0.7)]
    assert {str(text.get_text()) for text in figure.legends[0].get_texts()} == {"allreduce", "ssp staleness=3"}


def test_every_strategy_has_a_line_of_its_own_and_one_without_bytes_is_drawn() -> None:
    evaluations = [{"step": n, "seconds": n, "bytes_sent": 0, "loss": 1 / n} for n in (1, 2)]
    many = [Outcome(f"s{n}", "", evaluations, {}) for n in range(20)]
    seconds, sent, _ = picture(many, "loss", "", None).axes
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in seconds.get_lines()}
    assert len(looks) == 20
    assert sent.get_xscale() == "linear", "a logarithmic axis has no zero"


def test_a_report_in_three_forms(outcomes: list[Outcome], tmp_path: Path) -> None:
    launch = {
        "world_size": 2,
        "engine": "mpi",
        "emulate": {"gbps": 1.0, "latency_ms": 5.0, "straggler": 1, "factor": 5.0},
    }
    report = Report("a/model.yaml", "10epochs", ("accuracy", 0.7), launch, outcomes)
    assert report.title == (
        "model.yaml, np=2, 10 epochs, links of 1 Gbit/s, 5 ms latency, rank 1 slower by a factor of 5"
    )
    assert report.metric == "accuracy"
    assert Report("a/model.yaml", None, ("accuracy", 0.7), launch, outcomes, "loss").metric == "loss"
    report.save(tmp_path / "out")
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert saved["rows"] == outcome.rows(outcomes, ("accuracy", 0.7))
    assert [len(run["evaluations"]) for run in saved["runs"]] == [3, 2, 0]
    head, *rows = report.text().splitlines()
    assert head.split()[:3] == ["strategy", "loss", "accuracy"]
    assert rows[0].split()[:4] == ["allreduce", "0.3333", "0.9", "30"]
    assert rows[2].endswith("failed: no such thing")


def test_a_report_of_nothing(tmp_path: Path) -> None:
    launch = {"world_size": 2, "engine": "mpi", "emulate": None}
    report = Report("model.yaml", None, None, launch, [])
    report.save(tmp_path / "out")
    assert report.text() == ""


SCORES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9)


def middle_half(values: list[float]) -> float:
    """Return the interquartile mean, of each value four times, of which a quarter can be cut off."""
    number = len(values)
    return float(np.mean(sorted(values * 4)[number : 3 * number]))


@given(SCORES)
def test_an_interquartile_mean(values: list[float]) -> None:
    assert statistics.interquartile_mean(values) == pytest.approx(middle_half(values), abs=1e-9)
    assert episodes.interquartile_mean(sorted(values)) == pytest.approx(middle_half(values), abs=1e-9)


def test_an_interval_is_that_of_resampled_seeds() -> None:
    scores, generator = [[10.0, 400.0, 30.0, 475.0, 500.0], [7.0, 8.0, 9.0]], np.random.default_rng(0)
    drawn = [generator.integers(len(s), size=(statistics.RESAMPLES, len(s))).tolist() for s in scores]
    means = [
        middle_half([s[i] for s, chosen in zip(scores, places, strict=True) for i in chosen])
        for places in zip(*drawn, strict=True)
    ]
    assert statistics.interval(scores) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert statistics.interval([[0.0] * 4, [10.0] * 4]) == (5.0, 5.0), "each task keeps its number of seeds"
    low, high = statistics.interval([[0.0] * 4 + [10.0] * 4])
    assert low < 5 < high


def test_a_curve_of_seeds_begins_with_the_last_one_and_keeps_what_ended() -> None:
    found = curve([[(10, 0.0), (20, 10.0), (40, 30.0)], [(15, 4.0), (20, 6.0)], []])
    assert found.x.tolist() == [15, 20, 40]
    assert found.low.tolist() == [4, 6, 6]
    assert found.high.tolist() == [5, 10, 30]
    assert found.mean.tolist() == [4.5, 8, 18]
    alone = curve([[(10, 1.0), (20, 2.0)]])
    assert (alone.x.tolist(), alone.mean.tolist()) == ([10, 20], [1, 2])


def played(folder: Path, returns: list[float]) -> Path:
    """Write a run of an agent with an evaluation every 1000 environment steps, two seconds and MB."""
    folder.mkdir()
    evaluations = [
        {"kind": "eval", "step": 10 * n, "env_steps": 1000 * n, "seconds": 2.0 * n, "bytes_sent": 2_000_000 * n,
         "return": value, "return_min": value - 1, "episode_length": 9.0}
        for n, value in enumerate(returns, 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    last = {name: evaluations[-1][name] for name in ("return", "return_min", "episode_length")}
    rates = {"steps_per_second": 5.0, "env_steps_per_second": 500.4}
    (folder / "summary.json").write_text(json.dumps({"eval": last, "ended": "length", **rates}))
    return folder


@pytest.fixture
def seeds(tmp_path: Path) -> list[Outcome]:
    """Three seeds of one strategy, and two of another one, of which one failed."""
    returns = {"a1": [10, 100], "a2": [20, 200, 200], "a3": [30, 300], "b1": [40, 50]}
    found = [
        outcome.read("allreduce" if name < "b" else "gossip", played(tmp_path / name, values), None, seed)
        for seed, (name, values) in enumerate(returns.items())
    ]
    return [*found, outcome.read("gossip", tmp_path / "b2", "no such thing", 1)]


def test_a_row_of_seeds_has_means_and_an_interval(seeds: list[Outcome]) -> None:
    first, second = outcome.rows(seeds, ("return", 150.0))
    low, high = statistics.interval([[100.0, 200.0, 300.0]])
    assert first == {
        "strategy": "allreduce",
        "return": 200.0,
        "return IQM": 200.0,
        "IQM low": low,
        "IQM high": high,
        "episode_length": 9.0,
        "steps": 23,
        "env steps": 2333,
        "seconds": pytest.approx(14 / 3),
        "over first": 1.0,
        "steps/s": 5.0,
        "env steps/s": 500,
        "MB sent": pytest.approx(14 / 3),
        "bytes over first": 1.0,
        "env steps to return 150": 2000,
        "s to return 150": 4.0,
        "MB to return 150": 4.0,
        "return per 1000 env steps": pytest.approx((50 + 200 / 3 + 150) / 3),
        "return per s": pytest.approx((25 + 200 / 6 + 75) / 3),
        "return per MB": pytest.approx((25 + 200 / 6 + 75) / 3),
        "reached return 150": "2 of 3",
        "ended": "length",
    }
    assert (second["return"], second["reached return 150"]) == (50, "0 of 2")
    assert second["env steps to return 150"] is None
    assert second["over first"] == pytest.approx(4 / (14 / 3))
    assert second["ended"] == "1 of 2 failed: no such thing"


def test_the_return_is_drawn_over_environment_steps_with_a_band(seeds: list[Outcome]) -> None:
    assert outcome.metric(seeds) == "return"
    assert outcome.measured(seeds) == ["episode_length", "return", "return_min"]
    figure = picture(seeds, "return", "", 150.0)
    seconds, _, env_steps = figure.axes
    assert env_steps.get_xlabel() == "environment steps of all ranks"
    assert lines(env_steps)["allreduce"] == [(1000, 20), (2000, 200), (3000, 200)]
    assert lines(seconds)["gossip (1 of 2 failed)"] == [(2, 40), (4, 50)]
    band, _ = env_steps.collections
    corners = band.get_paths()[0].vertices
    assert {tuple(corner) for corner in corners.tolist()} >= {(1000, 10), (1000, 30), (2000, 100), (3000, 300)}
    assert figure.legends[0].get_title().get_text() == "lines: mean of the seeds; bands: lowest to highest"


def test_a_goal_of_the_file_is_the_goal_of_its_comparison(tmp_path: Path) -> None:
    assert series(model(tmp_path), "allreduce").goal is None
    file = model(tmp_path, "train: {converge: {value: 0.9}}\n")
    assert series(file, "allreduce").goal == ("accuracy", 0.9)
    assert series(file, "allreduce", "train.converge={metric: loss, mode: max, value: 1}").goal is None


@pytest.mark.parametrize(
    ("limit", "evaluations", "reason"),
    [({"max_bytes": 3000}, 2, "bytes_sent used up"), ({"max_seconds": 1e-9}, 1, "seconds used up")],
)
def test_a_budget_ends_a_run_at_the_first_evaluation_after_it(
    limit: dict[str, Any], evaluations: int, reason: str
) -> None:
    """Each of two ranks sends 84 float64 numbers a step, 1,344 bytes together."""
    train = {"epochs": 100, "eval_every": 2, **limit}

    def ended(comm: Communicator) -> tuple[str, int, int]:
        job = training.trainer(comm, training.configuration(train=train, sync={"fusion_mb": 1.0}))
        return job.run(), job.progress.step, job.accounting.bytes_sent

    (first, steps, sent), second = threads.run(2, ended)
    assert second == (first, steps, sent)
    assert (first, steps) == (reason, 2 * evaluations)
    assert sent == steps * 8 * 84

"""`ddl compare` as a user types it: real runs, one after another."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.ddl import SMALL, alive, ddl, ranks, start, summary, wait_for
from tests.integration.parts import needs


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "model.yaml"
    file.write_text(SMALL)
    return file


def test_strategies_are_compared_and_one_that_fails_is_a_row(model: Path, tmp_path: Path) -> None:
    """Two ranks take eight steps with a latency of 20 ms. Rank 0 computes twenty times slower."""
    needs("mpirun")
    done = ddl(
        "compare", model, "train.eval_every=2", "--np", "2", "--budget", "8steps", "--target", "loss=100",
        "--strategies", "allreduce,allreduce:optimizer.lr=1e300,local_sgd:period=4",
        "--latency-ms", "20", "--straggler", "0:20", "--output", "out", cwd=tmp_path, timeout=240,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    allreduce, diverged, local = found["rows"]
    assert [row["steps"] for row in found["rows"]] == [8, None, 8]
    assert diverged["ended"].startswith("failed: the loss became")
    assert allreduce["seconds"] >= 8 * 2 * 0.02
    assert local["seconds"] >= 2 * 2 * 0.02
    assert local["bytes over first"] == pytest.approx(1 / 4, rel=0.05)
    phases = summary(tmp_path / "out" / "03-local_sgd-period=4")["seconds"]
    assert phases["backward"] >= 19 * (phases["data"] + phases["forward"]), "there it makes up for what it is ahead"
    assert allreduce["s to loss 100"] == found["runs"][0]["evaluations"][0]["seconds"]
    steps, sent, _ = zip(
        *((e["step"], e["bytes_sent"], e["seconds"]) for e in found["runs"][0]["evaluations"]), strict=True
    )
    assert steps == (2, 4, 6, 8)
    assert sent == tuple(sent[0] * n for n in (1, 2, 3, 4))
    folders = ["01-allreduce", "02-allreduce-optimizer.lr=1e300", "03-local_sgd-period=4"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [*folders, "compare.json", "compare.png"]
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    seeds = {json.loads((tmp_path / "out" / f / "config.json").read_text())["seed"] for f in folders}
    assert seeds == {0}
    table = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in table] == [
        "strategy",
        "allreduce",
        "allreduce optimizer.lr=1e300",
        "local_sgd period=4",
    ]
    assert "3/3 local_sgd period=4" in done.stderr


def test_a_signal_ends_the_series(model: Path, tmp_path: Path) -> None:
    needs("mpirun")
    process = start(
        "compare", model, "--strategies", "local_sgd,allreduce", "--budget", "1000s", "--output", "out", cwd=tmp_path
    )
    try:
        wait_for(tmp_path, "out/01-local_sgd/metrics.jsonl")
        started = ranks(process.pid)
        assert len(started) == 2
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75, errors
    assert "2/2" not in errors
    deadline = time.monotonic() + 10
    while alive(started) and time.monotonic() < deadline:
        psutil.wait_procs(started, timeout=0.2)
    assert not alive(started)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategies", "allreduce,locl_sgd"], "no 'locl_sgd' here; did you mean 'local_sgd'?"),
        (["--np", "0"], "--np: expected at least 1 rank, got 0"),
        (["--output", "."], "--output: . exists; give another folder"),
    ],
)
def test_mistakes_leave_nothing(arguments: list[str], message: str, model: Path, tmp_path: Path) -> None:
    done = ddl("compare", model, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == [model]


def test_emulation_is_for_yaml_files(tmp_path: Path) -> None:
    (tmp_path / "script.py").touch()
    done = ddl("run", "--straggler", "0:5", "script.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "--straggler are for YAML files" in done.stderr


def test_a_run_is_told_what_to_emulate(model: Path, tmp_path: Path) -> None:
    done = ddl(
        "run", "--np", "2", "--gbps", "1", "--latency-ms", "5", "--straggler", "1:5", "--dry-run", model, cwd=tmp_path
    )
    assert '"emulate":{"latency_ms":5.0,"gbps":1.0,"straggler":1,"factor":5.0}' in done.stdout


CARTPOLE = """\
model: {name: actor_critic, hidden: [8]}
data: {name: gymnasium, env: CartPole-v1, envs: 4, steps: 16, batch_size: 32, episodes: 4}
agent: {name: ppo, passes: 2}
optimizer: {name: Adam, lr: 0.01}
train: {env_steps: 256, eval_env_steps: 128}
"""


def test_seeds_of_an_agent_are_compared_by_their_return(tmp_path: Path) -> None:
    (tmp_path / "cartpole.yaml").write_text(CARTPOLE)
    done = ddl(
        "compare", "cartpole.yaml", "--np", "1", "--seeds", "2", "--strategies", "allreduce,local_sgd:period=2",
        "--target", "return=1", "--output", "out", cwd=tmp_path, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["metric"] == "return"
    assert [(run["strategy"], run["seed"]) for run in found["runs"]] == [
        ("allreduce", 0), ("local_sgd period=2", 0), ("allreduce", 1), ("local_sgd period=2", 1),
    ]  # fmt: skip
    assert [[e["env_steps"] for e in run["evaluations"]] for run in found["runs"]] == [[128, 256]] * 4
    for row in found["rows"]:
        assert (row["env steps"], row["env steps to return 1"], row["reached return 1"]) == (256, 128, "2 of 2")
        assert row["IQM low"] <= row["return IQM"] <= row["IQM high"]
        assert row["return per 1000 env steps"] == pytest.approx(row["return"] / 0.256)
        assert row["env steps/s"] > 0
    assert found["runs"][0]["evaluations"] != found["runs"][2]["evaluations"]
    assert (tmp_path / "out" / "02-local_sgd-period=2-seed-1" / "summary.json").is_file()
    assert "4/4 local_sgd period=2, seed 2 of 2" in done.stderr


def test_seeds_of_samples_are_compared_by_a_metric_that_they_measure(model: Path, tmp_path: Path) -> None:
    done = ddl(
        "compare", model, "train.converge={metric: Loss, value: 0.001}", "--np", "1", "--seeds", "2",
        "--strategies", "allreduce", "--budget", "2steps", "--metric", "los", "--output", "out", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    accuracies = [run["evaluations"][-1]["accuracy"] for run in found["runs"]]
    assert "--metric: no run measured 'los'; did you mean 'loss'?" in done.stderr
    assert (found["metric"], found["target"]) == ("accuracy", None), "the goal is not named as it is measured"
    assert found["rows"][0]["accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert found["rows"][0]["IQM low"] == pytest.approx(min(accuracies))
    assert accuracies[0] != accuracies[1]

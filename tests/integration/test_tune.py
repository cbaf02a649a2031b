"""`ddl tune` with real runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cli.search.records import Record, records
from cli.tune import study
from hvd_train.errors import ExitCode
from tests.integration.ddl import DIGITS, ROOT, SMALL, alive, ddl, ddl_here, is_rank, start, summary, wait_for
from tests.integration.parts import needs

RATE = ("--set", "optimizer.lr=log(1e-3,0.5)")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "m.yaml").write_text(SMALL)
    return tmp_path


def trials(folder: Path) -> list[Record]:
    return records(study.load(folder))


def below(pid: int) -> list[psutil.Process]:
    return [p for p in psutil.Process(pid).children(recursive=True) if p.is_running()]


def test_a_search_of_jobs_with_two_ranks_prunes_trials_that_resume_from_where_they_stopped(home: Path) -> None:
    needs("mpirun")
    told = ["--np", "2", "--trials", "4", "--pruner", "asha", "--sampler", "random", "--output", "s"]
    search = start("tune", "m.yaml", "train.epochs=9", *RATE, *told, "search.pruner.first=1", cwd=home)
    processes: dict[int, psutil.Process] = {}
    while search.poll() is None:
        processes |= {p.pid: p for p in below(search.pid)}
        time.sleep(0.1)
    assert search.returncode == 0, search.communicate()[1]
    found = trials(home / "s")
    assert sum(r.continues is None for r in found) == 4
    assert {"complete", "pruned"} == {r.state for r in found}
    for record in found:
        folder = home / "s" / record.folder
        assert summary(folder)["world_size"] == 2
        configured = json.loads((folder / "config.json").read_text())
        assert configured["optimizer"]["lr"] == record.values["optimizer.lr"]
        if record.state == "complete":
            assert record.objectives == (pytest.approx(summary(folder)["eval"]["loss"], rel=1e-9),)
    assert len(processes) > 8
    assert not alive(list(processes.values()))
    assert search.communicate()[0] == ""


def test_a_search_that_was_killed_loses_no_trial_and_runs_none_twice(home: Path) -> None:
    told = ["--parallel", "2", "--trials", "5", "--output", "s"]
    search = start("tune", "m.yaml", "train.epochs=40", *RATE, *told, cwd=home)
    wait_for(home / "s" / "trials", "0002/checkpoints/step-*")
    left = below(search.pid)
    search.send_signal(signal.SIGKILL)
    search.wait()
    before = {r.number: r for r in trials(home / "s") if r.state == "complete"}
    assert {0, 1} & set(before)
    done = ddl("tune", "--resume", "s", "--parallel", "2", cwd=home)
    assert done.returncode == 0, done.stderr
    after = {r.number: r for r in trials(home / "s")}
    assert [r.state for r in after.values()] == ["complete"] * 5
    assert {number: after[number] for number in before} == before
    assert {summary(home / "s" / r.folder)["steps"] for r in after.values()} == {
        summary(home / "s/trials/0000")["steps"]
    }
    assert not alive([p for p in left if is_rank(p)])
    assert ddl("tune", "--resume", "s", cwd=home).returncode == 0
    assert after == {r.number: r for r in trials(home / "s")}


def test_two_searches_in_one_folder(home: Path) -> None:
    search = start("tune", "m.yaml", "train.epochs=400", *RATE, "--output", "s", cwd=home)
    wait_for(home / "s" / "trials", "0000/metrics.jsonl")
    second = ddl("tune", "--resume", "s", cwd=home)
    assert second.returncode == 2
    assert f"process {search.pid} on " in second.stderr
    assert "searches in this folder; wait for its end" in second.stderr
    search.send_signal(signal.SIGTERM)
    assert search.wait(60) == ExitCode.STOPPED
    assert search.communicate()[1].endswith(f"ddl: stopped; go on with ddl tune --resume {home / 's'}\n")
    assert [r.state for r in trials(home / "s")][:1] == ["running"]


def test_trials_that_diverge_or_run_out_of_memory_are_rows(home: Path) -> None:
    (home / "greedy.py").write_text(
        "import resource, torch\n"
        "class Model(torch.nn.Linear):\n"
        "    def __init__(self, gigabytes: int):\n"
        "        super().__init__(64, 10)\n"
        "        resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))\n"
        "        self.memory = bytearray(gigabytes * 2**30)\n"
        "    def forward(self, x):\n"
        "        return super().forward(x.flatten(1))\n"
    )
    told = ["--sampler", "grid", "--retries", "0", "--output", "s"]
    space = ["--set", "model.gigabytes=[0,16]", "--set", "optimizer.lr=[0.05,1e308]"]
    done = ddl("tune", "m.yaml", "model={target: 'greedy:Model', gigabytes: 0}", *space, *told, cwd=home)
    assert done.returncode == 0, done.stderr
    found = {tuple(r.values.values()): (r.state, r.reason or "") for r in trials(home / "s")}
    assert len(found) == 4
    assert found[0, 0.05] == ("complete", "")
    assert found[0, 1e308][0] == "failed"
    assert "the loss became" in found[0, 1e308][1]
    assert all("MemoryError" in found[16, lr][1] for lr in (0.05, 1e308))


def test_cross_validation_of_a_grid(home: Path) -> None:
    told = ["--folds", "3", "--objective", "accuracy", "--sampler", "grid", "--output", "s"]
    done = ddl("tune", "m.yaml", "--set", "data.batch_size=[16,64]", *told, cwd=home)
    assert done.returncode == 0, done.stderr
    found = trials(home / "s")
    assert [r.state for r in found] == ["complete"] * 2
    for record in found:
        of_folds = [summary(home / "s" / record.folder / f"fold-{k}")["eval"]["accuracy"] for k in range(3)]
        assert record.folds == {str(k): [pytest.approx(value)] for k, value in enumerate(of_folds)}
        assert record.objectives == (pytest.approx(sum(of_folds) / 3),)


def test_strategies_and_ranks_are_dimensions_and_the_goal_may_be_time(home: Path) -> None:
    needs("mpirun")
    told = ["--strategies", "allreduce,local_sgd:period=4", "--set", "np=[1,2]", "--sampler", "grid", "--output", "s"]
    goal = ["--objective", "seconds@accuracy=0.5", "--objective", "bytes_sent"]
    done = ddl("tune", "m.yaml", *told, *goal, cwd=home)
    assert done.returncode == 0, done.stderr
    found = trials(home / "s")
    assert {(r.values["strategy"], r.values["np"]) for r in found} == {
        (name, np) for name in ("allreduce", "local_sgd:period=4") for np in (1, 2)
    }
    for record in found:
        told_by_run = summary(home / "s" / record.folder)
        assert told_by_run["strategy"] == record.values["strategy"].partition(":")[0]
        assert told_by_run["world_size"] == record.values["np"]
        rows = [json.loads(line) for line in (home / "s" / record.folder / "metrics.jsonl").read_text().splitlines()]
        reached = next(row for row in rows if row["kind"] == "eval" and row["accuracy"] >= 0.5)
        assert record.objectives == (reached["seconds"], rows[-1].get("bytes_sent", told_by_run["bytes_sent"]))


WRONG = {
    ("--set", "optimizer.lr=uniform(1,0)"): "uniform(1,0)",
    ("--set", "optimiser.lr=uniform(0,1)"): "did you mean 'optimizer'",
    ("--set", "data.batch_size=[0,16]"): "data.batch_size=0",
    ("--set", "optimizer.lr=[0.1]", "--set", "optimizer.momentum=uniform(0,1) when optimizer.nam=SGD"): "optimizer.nam",
    ("--set", "np=[1,9]", "--hosts", "localhost:2"): "a trial has 9 ranks, and the hosts have 2 slots",
    ("--set", "optimizer.lr=[0.1]", "--sampler", "tpee"): "did you mean 'tpe'",
    ("--set", "optimizer.lr=uniform(0,1)", "--sampler", "grid"): "has no end of values",
    ("--set", "optimizer.lr=[0.1]", "--objective", "f1_score"): "say so: f1_score:max",
    ("--set", "optimizer.lr=[0.1]", "--pruner", "median", "--objective", "loss", "--objective", "seconds"): "2",
    ("--set", "optimizer.lr=[0.1]", "--parallel", "many"): "expected 'auto' or a number",
    ("--set", "optimizer.lr=[0.1]", "--strategies", "allreduse"): "did you mean 'allreduce'",
    (): "nothing to search",
    ("--resume", "nowhere"): "no search in this folder",
}


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_mistakes_are_refused_before_anything_is_written(home: Path, words: tuple[str, ...]) -> None:
    before = sorted(home.iterdir())
    file = [] if "--resume" in words else ["m.yaml", "--output", "s"]
    done = ddl_here("tune", *file, *words, cwd=home)
    assert done.returncode == 2
    assert WRONG[words] in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(home.iterdir()) == before


def test_the_missing_package_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    for words in (["m.yaml", "--set", "seed=[1,2]"], ["show", "s"]):
        done = ddl_here("tune", *words, cwd=home)
        assert done.returncode == 2
        assert "needs Optuna, which is not installed; in a checkout of ddl, run pip install -e '.[tune]'" in done.stderr


def test_the_space_of_the_page_is_valid(home: Path) -> None:
    page = (ROOT / "docs" / "tuning.md").read_text()
    (home / "p.yaml").write_text(DIGITS.read_text() + page.partition("```yaml\n")[2].partition("```")[0])
    done = ddl_here("tune", "p.yaml", "--dry-run", cwd=home)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("40 trials on ")


def test_another_search_is_refused_with_the_difference(home: Path) -> None:
    assert (
        ddl("tune", "m.yaml", "--set", "optimizer.lr=[0.1,0.2]", "--trials", "1", "-o", "s", cwd=home).returncode == 0
    )
    for words, difference in {
        ("--set", "optimizer.lr=[0.1,0.3]"): "space.optimizer.lr.domain.values was [0.1, 0.2], is [0.1, 0.3]",
        ("train.epochs=3",): "train.epochs was 2, is 3",
        ("--np", "2"): "np was 1, is 2",
    }.items():
        done = ddl_here("tune", *(("m.yaml",) if "=" in words[0] else ()), "--resume", "s", *words, cwd=home)
        assert (done.returncode, difference in done.stderr) == (2, True), done.stderr
    (home / "m.yaml").write_text("broken")
    assert ddl("tune", "--resume", "s", "--trials", "2", cwd=home).returncode == 0
    assert len(trials(home / "s")) == 2


def test_a_short_run_of_the_kills_of_the_benchmark(tmp_path: Path) -> None:
    needs("mpirun")
    command = [sys.executable, "-m", "benchmarks.tune_chaos", "--searches", "1", "--seed", "1"]
    told = ["--output", str(tmp_path / "chaos.json")]
    done = subprocess.run([*command, *told], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "chaos.json").read_text())["good"] == 1

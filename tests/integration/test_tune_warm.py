"""Runs on ranks that stay alive: they equal runs of new processes, and leave nothing behind."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.tune import gate
from cli.tune.runner import Run, Running
from cli.tune.runners.warm import Warm
from hvd_train.errors import ExitCode
from hvd_train.rank.segments import SHARED
from tests.integration.ddl import alive, ddl, is_rank, wait_for_steps

YAML = """\
model: {name: mlp, hidden: [32], dropout: 0.2}
data: {name: digits, batch_size: 32, partition: random}
optimizer: {name: AdamW, lr: 0.004}
train: {steps: 50, log_every: 10}
"""
LONG = ("train.steps=1000000", "checkpoint.every=1000000", "train.eval_every=1000000")
OF_TIME = {"seconds", "samples_per_second", "steps_per_second"}


class Pool:
    """Runs of one file on two ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "model.yaml"
        self.file.write_text(YAML)
        self.warm = Warm(folder / "pool")

    def start(self, name: str, *overrides: str, resume: Path | None = None, gated: bool = False) -> Running:
        return self.warm.start(Run(self.file, overrides, 2, self.folder / name, resume=resume, gated=gated))

    def run(self, name: str, *overrides: str, resume: Path | None = None) -> tuple[int, str]:
        return ended(self.start(name, *overrides, resume=resume))

    def ranks(self) -> list[psutil.Process]:
        return [process for process in psutil.Process().children(recursive=True) if is_rank(process)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    made = Pool(tmp_path_factory.mktemp("warm"))
    yield made
    processes = psutil.Process().children(recursive=True)
    made.warm.close()
    assert not alive(processes)


def ended(running: Running) -> tuple[int, str]:
    by = time.monotonic() + 60
    while (code := running.poll()) is None:
        assert time.monotonic() < by
        time.sleep(0.01)
    return code, running.message() if code else ""


def shared(process: psutil.Process) -> int:
    """Return the number of files in shared memory that `process` has mapped, removed ones included."""
    return Path(f"/proc/{process.pid}/maps").read_text().count(f" {SHARED}/")


def model(folder: Path) -> bytes:
    """Return the last model that the run in `folder` saved."""
    return max(folder.glob("checkpoints/step-*")).joinpath("model.safetensors").read_bytes()


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in OF_TIME} for line in lines]


def test_runs_equal_those_of_new_processes(pool: Pool) -> None:
    wide, other = ("model.hidden=[64]", "seed=3"), ("optimizer.name=SGD", "data.batch_size=16")
    assert pool.run("wide", *wide) == (ExitCode.OK, "")
    code, reason = pool.run("diverged", "optimizer.name=SGD", "optimizer.lr=1e30")
    assert code == ExitCode.DIVERGED
    assert reason.startswith("the loss became")
    assert (pool.folder / "diverged" / "errors" / "rank-1.json").exists()
    code, reason = pool.run("bad", "model.target=nothing:Here")
    assert code == ExitCode.BAD_INPUT
    assert "nothing" in reason
    code, reason = pool.run("refused", "train.early_stop={metric: nothing, patience: 3}")
    assert code == ExitCode.BAD_INPUT
    assert not (pool.folder / "refused").exists()
    assert pool.run("other", *other) == (ExitCode.OK, "")
    for name, overrides in (("wide", wide), ("other", other)):
        cold = pool.folder / f"cold-{name}"
        done = ddl("run", pool.file, *overrides, "--np", "2", "--output", cold, cwd=pool.folder)
        assert done.returncode == 0, done.stderr
        assert model(pool.folder / name) == model(cold)
        assert metrics(pool.folder / name) == metrics(cold)
        logs = (pool.folder / name / "logs" / "rank-1.log").read_text()
        assert logs.startswith("rank 1 of 2")


def test_a_stopped_run_resumes(pool: Pool) -> None:
    running = pool.start("stopped", *LONG)
    wait_for_steps(pool.folder / "stopped")
    running.stop()
    code, reason = ended(running)
    assert code == ExitCode.STOPPED
    assert reason.startswith("stopped by a signal after step")
    steps = int(reason.split()[6].rstrip(";"))
    stopped = pool.folder / "stopped"
    assert pool.run("stopped", f"train.steps={steps + 3}", resume=stopped) == (ExitCode.OK, "")
    assert json.loads((stopped / "summary.json").read_text())["steps"] == steps + 3


def test_a_gate_ends_its_run_and_not_the_next_one(pool: Pool) -> None:
    running = pool.start("gated", *LONG, "train.eval_every=20", gated=True)
    wait_for_steps(pool.folder / "gated")
    gate.answer(pool.folder / "gated", 10**6, stop=True)
    assert ended(running)[0] == ExitCode.STOPPED
    assert pool.run("ungated") == (ExitCode.OK, "")


def test_a_killed_rank_fails_its_run_and_not_the_next_one(pool: Pool) -> None:
    running = pool.start("killed", *LONG)
    wait_for_steps(pool.folder / "killed")
    pool.ranks()[1].send_signal(signal.SIGKILL)
    code, reason = ended(running)
    assert code == ExitCode.FAILURE
    assert "rank 1" in reason
    assert pool.run("after") == (ExitCode.OK, "")


def test_runs_leave_nothing_in_the_ranks(pool: Pool) -> None:
    def held() -> list[tuple[int, int, int, int]]:
        return [(p.num_threads(), p.num_fds(), shared(p), len(p.children())) for p in pool.ranks()]

    trials = (
        ("data.workers=1",),
        ("optimizer.name=SGD", "optimizer.lr=1e30"),
        ("sync.shard_optimizer=true",),
        ("sync.strategy=async_gossip",),
        ("data.workers=1", "train.early_stop={metric: nothing, patience: 3}"),
        ("parallel.pipeline=2",),
    )
    pool.run("first")
    time.sleep(0.3)  # the ranks tidy up after they have reported the end
    before = held()
    assert before
    for number, trial in enumerate(trials):
        pool.run(f"again-{number}", *trial)
    by = time.monotonic() + 5
    while held() != before and time.monotonic() < by:
        time.sleep(0.05)
    assert held() == before


def test_idle_ranks_use_no_processor(pool: Pool) -> None:
    def spent() -> float:
        return sum(sum(p.cpu_times()[:2]) for p in pool.ranks())

    before = spent()
    time.sleep(2)
    assert spent() - before <= 0.06


def test_a_run_is_killed_at_once(pool: Pool) -> None:
    running = pool.start("ended", *LONG)
    wait_for_steps(pool.folder / "ended")
    ranks = pool.ranks()
    running.kill()
    code, _ = ended(running)
    assert code == 128 + signal.SIGKILL
    assert not alive(ranks)

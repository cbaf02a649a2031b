"""Ranks of asynchronous strategies that really die: SIGKILL under the real mpirun, through the real command."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.integration.ddl import SMALL, ranks, start, summary, wait_for_steps
from tests.integration.parts import needs

QUICK = ["train.eval_every=1000000", "checkpoint.every=1000000", "train.log_every=1"]
AGENT = """\
model: {name: actor_critic, hidden: [16]}
data: {name: gymnasium, env: CartPole-v1, envs: 2, steps: 16, batch_size: 32, episodes: 3}
agent: {name: ppo, passes: 2}
train: {env_steps: 12000, eval_env_steps: 1000000, log_every: 1}
checkpoint: {every: 1000000}
"""
ENDLESS = [*QUICK, "train.epochs=1000000"]


@contextmanager
def running(
    folder: Path, np: int, sync: str, *overrides: str, text: str = SMALL
) -> Iterator[tuple[subprocess.Popen[str], dict[int, psutil.Process]]]:
    """A run of `np` ranks that takes its steps; its ranks by number."""
    (folder / "model.yaml").write_text(text)
    job = start("run", "--np", f"{np}", "--output", "out", "model.yaml", f"sync={sync}", *overrides, cwd=folder)
    try:
        wait_for_steps(folder / "out", timeout=180)
        yield job, {int(p.environ()["OMPI_COMM_WORLD_RANK"]): p for p in ranks(job.pid)}
    finally:
        job.terminate()
        job.communicate(timeout=30)


@pytest.mark.parametrize(
    "sync",
    ["{strategy: async_ps}", "{strategy: ssp, staleness: 2}", "{strategy: async_gossip}"],
    ids=["async_ps", "ssp", "async_gossip"],
)
def test_others_go_on_without_a_worker_that_is_killed(sync: str, tmp_path: Path) -> None:
    needs("mpirun")
    with running(tmp_path, 3, sync, *QUICK, "train.epochs=60") as (job, of):
        of[2].send_signal(signal.SIGKILL)
        _, errors = job.communicate(timeout=60)
        assert job.returncode == 0, errors
        assert re.search(r"^ddl: rank 2 on \S+ is lost; the other ranks continue without it$", errors, re.MULTILINE), (
            errors
        )
        found = summary(tmp_path / "out")
        assert (found["lost"], found["ended"], found["epochs"]) == ([2], "length", 60)
        assert found["eval"]["accuracy"] > 0.5
        # An epoch is shared by two from the one after the death on.
        steps = [json.loads(x) for x in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
        of_epoch = [sum(r["epoch"] == epoch for r in steps if r["kind"] == "train") for epoch in (1, 60)]
        assert of_epoch[0] < of_epoch[1]
        assert psutil.wait_procs(of.values(), timeout=5)[1] == []


def test_agents_go_on_without_a_worker_that_is_killed(tmp_path: Path) -> None:
    """The others act and learn until they have made the steps of their own shares."""
    needs("mpirun")
    with running(tmp_path, 3, "{strategy: async_ps}", text=AGENT) as (job, of):
        of[2].send_signal(signal.SIGKILL)
        _, errors = job.communicate(timeout=60)
        assert job.returncode == 0, errors
        found = summary(tmp_path / "out")
        assert (found["lost"], found["ended"], found["epochs"]) == ([2], "length", 125)
        assert found["eval"]["return"] > 1
        assert psutil.wait_procs(of.values(), timeout=5)[1] == []


@pytest.mark.parametrize("victim", [0, 2], ids=["rank 0", "server"])
def test_a_job_that_lost_rank_0_or_a_server_ends_and_says_so(victim: int, tmp_path: Path) -> None:
    needs("mpirun")
    with running(tmp_path, 3, "{strategy: async_ps, placement: dedicated}", *ENDLESS) as (job, of):
        began = time.monotonic()
        of[victim].send_signal(signal.SIGKILL)
        _, errors = job.communicate(timeout=30)
        assert job.returncode == 1, errors
        assert time.monotonic() - began < 10
        does = {0: "evaluates and saves", 2: "holds parameters"}[victim]
        assert re.search(rf"the first failure: rank {victim} on \S+ is gone, which {does}: the run cannot", errors), (
            errors
        )
        assert "Traceback" not in errors
        assert psutil.wait_procs(of.values(), timeout=5)[1] == []


def test_a_signal_saves_the_servers_state_and_the_run_goes_on_from_it(tmp_path: Path) -> None:
    needs("mpirun")
    with running(tmp_path, 3, "{strategy: ssp, servers: 2}", *ENDLESS, "optimizer={name: AdamW, lr: 0.01}") as (
        job,
        of,
    ):
        job.send_signal(signal.SIGUSR1)
        _, errors = job.communicate(timeout=30)
        assert job.returncode == 75, errors
        steps = summary(tmp_path / "out")["steps"]
        (saved,) = (tmp_path / "out" / "checkpoints").iterdir()
        assert saved.name == f"step-{steps:08d}"
        assert (saved / "optimizer.safetensors").stat().st_size > 2 * (saved / "model.safetensors").stat().st_size * 0.9
        assert psutil.wait_procs(of.values(), timeout=5)[1] == []

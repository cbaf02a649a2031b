"""`ddl tune` on several hosts, over ssh and inside an allocation of SLURM."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.search.records import Record, records
from cli.tune import study
from tests.cluster.hosts import Hosts, wait_until
from tests.cluster.slurm import Slurm
from tests.integration.ddl import ROOT, SMALL, is_rank, summary, wait_for
from tests.integration.parts import needs
from tests.integration.test_across_hosts import places

pytestmark = pytest.mark.timeout(300)
TOLD = ["m.yaml", "--set", "optimizer.lr=[0.01,0.02,0.05,0.1]", "--sampler", "grid", "--np", "2", "--output", "s"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    needs("mpirun")
    (tmp_path / "m.yaml").write_text(SMALL)
    return tmp_path


def trials(folder: Path) -> list[Record]:
    return records(study.load(folder))


def most_at_a_time(found: list[Record]) -> int:
    edges = sorted((t, change) for r in found for begin, end, _ in r.spans for t, change in ((begin, 1), (end, -1)))
    return max(sum(change for _, change in edges[: i + 1]) for i in range(len(edges)))


def tune(home: Path, *words: str) -> list[str]:
    return ["env", f"--chdir={home}", sys.executable, "-m", "cli", "tune", *words]


def test_trials_share_the_slots_of_hosts(hosts: Hosts, home: Path) -> None:
    done = hosts.run("n1", tune(home, *TOLD, "--hosts", "n1:2,n2:4"), timeout=200)
    assert done.returncode == 0, done.stderr
    found = trials(home / "s")
    assert [r.state for r in found] == ["complete"] * 4
    ran = [places(home / "s" / r.folder) for r in found]
    assert {tuple(place) for place in ran} == {("n1", "n1"), ("n2", "n2")}
    assert most_at_a_time(found) == 3
    slots = {slot for r in found for *_, names in r.spans for slot in names}
    assert slots == {"n1:0", "n1:1", "n2:0", "n2:1", "n2:2", "n2:3"}
    assert not any(hosts.processes(name) for name in hosts.names)


def test_a_trial_that_loses_a_rank_on_another_host_is_tried_again(hosts: Hosts, home: Path) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = tune(home, *TOLD, "--hosts", "n1:1,n2:1", "--trials", "2", "train.epochs=10")
    search = hosts.start("n1", words, **pipes)
    wait_for(home / "s" / "trials", "0000/checkpoints/step-*", 100)
    wait_until(lambda: any(map(is_rank, hosts.processes("n2"))), "a rank on n2")
    next(p for p in hosts.processes("n2") if is_rank(p)).send_signal(signal.SIGKILL)
    _, errors = search.communicate(timeout=200)
    assert search.returncode == 0, errors
    found = trials(home / "s")
    assert [r.state for r in found] == ["complete"] * 2
    assert sum(len(r.spans) for r in found) == 3
    assert ", attempt 1: the first failure: rank 1 on n2" in errors
    assert not any(hosts.processes(name) for name in hosts.names)


def test_trials_share_an_allocation_of_slurm(slurm: Slurm, home: Path) -> None:
    words = ["salloc", "--quiet", "--nodes=2", "--ntasks-per-node=2", *tune(home, *TOLD)]
    done = slurm.run(words, timeout=200, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    found = trials(home / "s")
    assert [r.state for r in found] == ["complete"] * 4
    assert {tuple(places(home / "s" / r.folder)) for r in found} == {("n1", "n1"), ("n2", "n2")}
    assert most_at_a_time(found) == 2
    assert {summary(home / "s" / r.folder)["world_size"] for r in found} == {2}

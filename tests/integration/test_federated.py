"""Federated runs that end before their time, through the real command."""

from __future__ import annotations

from pathlib import Path

import pytest
from opacus.accountants import RDPAccountant

from tests.integration.ddl import ddl, summary

DIES_ONCE = """\
import os, signal
from pathlib import Path
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.calls = torch.nn.Linear(64, 10), 0

    def forward(self, x):
        self.calls += self.training
        mark = Path("died")
        if self.calls == 60 and os.environ["OMPI_COMM_WORLD_RANK"] == "1" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(x.flatten(1))
"""
PRIVATE = """\
model: {target: dies_once:Model}
data: {name: digits, batch_size: 16, partition: contiguous}
train: {epochs: 2}
checkpoint: {every: 1000}
sync: {strategy: federated, clip: 1.0, noise: 2.0, fraction: 1.0}
"""


def test_rounds_that_a_killed_run_released_are_in_epsilon_however_it_goes_on(tmp_path: Path) -> None:
    """Killed in round 2 before any checkpoint, and begun again: 1 + 2 rounds.

    Gone on from in another folder for two more, and from there, after the first of these, in a third: 1 + 2 + 2 + 1.
    """
    (tmp_path / "dies_once.py").write_text(DIES_ONCE)
    (tmp_path / "private.yaml").write_text(PRIVATE)
    done = ddl("run", "private.yaml", "--np", 2, "--output", "first", "--max-restarts", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    assert "epsilon against outsiders" in done.stdout
    assert "epsilon against ranks" in done.stdout
    check(tmp_path / "first", rounds=2, released=3)
    steps = summary(tmp_path / "first")["steps"] // 2
    for source, folder, released in [
        ("first", "second", 5),
        (f"second/checkpoints/step-{3 * steps:08d}", "third", 6),
    ]:
        more = ["--resume", source, "--output", folder, "train.epochs=4", "checkpoint.every=epoch"]
        done = ddl("run", "private.yaml", "--np", 2, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        check(tmp_path / folder, rounds=4, released=released)


def check(folder: Path, rounds: int, released: int) -> None:
    found, accountant = summary(folder), RDPAccountant()
    accountant.history = [(2.0, 1.0, released)]
    assert (found["rounds"], found["rounds_released"]) == (rounds, released)
    assert found["epsilon_ranks"] == found["epsilon"] == pytest.approx(accountant.get_epsilon(1e-5), rel=0.01)

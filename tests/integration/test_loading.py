"""Runs whose samples are made by worker processes."""

from __future__ import annotations

from pathlib import Path

from safetensors.numpy import load_file

from tests.integration.ddl import ddl
from tests.integration.parts import needs

MINE = """
import os
import random
import signal

import numpy as np
import torch
from torch.utils.data import Dataset


class Noisy(Dataset):
    def __init__(self, fatal):
        self.fatal, self.targets = fatal, torch.arange(64) % 4

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if index == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        noise = torch.randn(8) + random.random() + np.random.rand()
        return noise + index % 4, index % 4


def noisy(*, fatal=-1):
    return Noisy(fatal)
"""
RUN = """
model: {name: mlp, hidden: [8]}
data: {target: "mine:noisy", batch_size: 4, workers: 2}
train: {steps: 13, eval_every: 100}
checkpoint: {every: 5}
"""


def _last(folder: Path) -> dict[str, list[float]]:
    """Return the parameters in the last checkpoint of a run."""
    (path,) = (folder / "checkpoints").glob("step-*13/model.safetensors")
    return {name: value.tolist() for name, value in load_file(path).items()}


def test_a_resumed_run_with_other_workers_is_the_same(tmp_path: Path) -> None:
    needs("mpi")
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "run.yaml").write_text(RUN)
    whole = ddl("run", "--np", "2", "--output", "whole", "run.yaml", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    (fifth,) = (tmp_path / "whole" / "checkpoints").glob("step-*05")
    rest = ddl("run", "--np", "2", "--output", "rest", "--resume", fifth, "run.yaml", "data.workers=0", cwd=tmp_path)
    assert rest.returncode == 0, rest.stderr
    assert _last(tmp_path / "rest") == _last(tmp_path / "whole")


def test_a_worker_that_dies_ends_the_job_with_a_sentence(tmp_path: Path) -> None:
    needs("mpi")
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "run.yaml").write_text(RUN)
    ended = ddl("run", "--np", "2", "run.yaml", "data.fatal=41", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback") == 0
    assert "was killed by SIGKILL" in ended.stderr
    assert "while it made target 'mine:noisy', training[41]" in ended.stderr

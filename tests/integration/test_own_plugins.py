"""A run whose members are all of the user's own, each in one file outside the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.ddl import ddl, summary
from tests.integration.parts import needs

MINE = """
import json

import torch
from torch import nn
from torch.utils.data import TensorDataset

from hvd_train.config.options import Annotated, PositiveInt
from hvd_train.data.partitions import random
from hvd_train.gradients.compressors import bf16
from hvd_train.monitor.base import Sink
from hvd_train.sync.strategies import local_sgd


def model(spec, *, width):
    return nn.Sequential(nn.Linear(*spec.input_shape, width), nn.ReLU(), nn.Linear(width, spec.outputs))


def data(samples):
    x = torch.randn(samples, 4)
    return TensorDataset(x, (x.sum(1) > 0).long())


def partition():
    return random.create()


def compressor():
    return bf16.create()


def strategy(context, *, period: Annotated[PositiveInt, "steps"] = 4):
    return local_sgd.create(context, period=period)


class Loud(Sink):
    def __init__(self, folder, *, prefix):
        self.folder, self.prefix = folder, prefix

    def close(self, summary):
        (self.folder / "loud.txt").write_text(self.prefix + json.dumps(summary["steps"]))


class Half:
    def keeps(self): ...


def sink_that_fails(folder):
    return 5
"""
RUN = """
model: {target: 'mine:model', width: 8}
data: {target: 'mine:data', samples: 64, batch_size: 8, partition: {target: 'mine:partition'}}
sync: {target: 'mine:strategy', period: 3, compression: {target: 'mine:compressor'}}
monitor: {sinks: [{target: 'mine:Loud', prefix: 'steps: '}]}
train: {epochs: 2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    needs("mpirun")
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "m.yaml").write_text(RUN)
    return tmp_path


def test_every_family_takes_a_target(folder: Path) -> None:
    assert ddl("validate", "m.yaml", cwd=folder).returncode == 0
    done = ddl("run", "--np", "2", "--output", "out", "m.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert summary(folder / "out")["strategy"] == "mine:strategy"
    assert (folder / "out" / "loud.txt").read_text() == "steps: 8"
    resolved = json.loads((folder / "out" / "config.json").read_text())
    assert resolved["monitor"]["sinks"][0]["target"] == "mine:Loud"


@pytest.mark.parametrize(
    ("command", "override", "words"),
    [
        ("validate", "sync.perod=3", "command line: 'sync.perod=3': sync.perod: unknown key; did you mean 'period'?"),
        (
            "validate",
            "data.partition.target=mien:partition",
            "data.partition.target: target 'mien:partition': no module",
        ),
        ("validate", "monitor.sinks=[{target: 'mine:Loud'}]", "monitor.sinks.0.prefix: is missing"),
        (
            "run",
            "sync.compression.target=mine:compresor",
            "no 'compresor' in module 'mine'; did you mean 'compressor'?",
        ),
        ("run", "data.partition.target=mine:Half", "returned a value of type Half, expected a Partitioner"),
        (
            "run",
            "monitor.sinks=[{target: 'mine:sink_that_fails'}]",
            "returned a value of type int, expected a Sink (rank 0 on ",
        ),
    ],
)
def test_bad_input_is_one_sentence(command: str, override: str, words: str, folder: Path) -> None:
    flags = ["--np", "2", "--output", "out"] if command == "run" else []
    done = ddl(command, *flags, "m.yaml", override, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.strip().count("\n") == 0, done.stderr
    assert not (folder / "out").exists()

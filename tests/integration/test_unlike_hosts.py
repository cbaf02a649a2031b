"""Hosts that differ in slots, memory and files: the right result, or one sentence that names the rank and the host."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cluster.hosts import Done, Hosts
from tests.integration.ddl import DIGITS, SMALL, summary
from tests.integration.parts import needs
from tests.integration.test_across_hosts import parameters

pytestmark = pytest.mark.timeout(240)

MODELS = """\
import socket
import torch
from torch import nn

HERE = socket.gethostname()

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 50000), nn.Linear(50000, 10))

def another_layer():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), *[nn.Linear(10, 10)] * (HERE == "n2"))

def shuffled():
    from sklearn.datasets import load_digits
    from torch.utils.data import TensorDataset
    digits = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(int(HERE == "n2")))
    return TensorDataset(torch.tensor(digits.images).float()[order], torch.tensor(digits.target)[order])

def broken():
    if HERE == "n2":
        raise ValueError("no licence on this host")
"""


def run(hosts: Hosts, slots: Sequence[int], *arguments: str | Path) -> Done:
    """`ddl run` on n1, for the first hosts with `slots` ranks each."""
    file = hosts.folder / "unlike"
    file.write_text("".join(f"{name} slots={n}\n" for name, n in zip(hosts.names, slots, strict=False)))
    (hosts.folder / "unlike_models.py").write_text(MODELS)
    command = ["/usr/bin/env", "-C", hosts.folder, sys.executable, "-m", "cli", "run", "--hostfile", file, *arguments]
    done = hosts.run("n1", command, timeout=120)
    assert not any(hosts.processes(name) for name in hosts.names)
    return done


@pytest.mark.parametrize("slots", [(2, 1), (1, 2, 3)], ids=lambda slots: "-".join(map(str, slots)))
def test_hosts_of_unequal_slots_train_as_one(slots: tuple[int, ...], hosts: Hosts, tmp_path: Path) -> None:
    needs("mpirun")
    model = tmp_path / "model.yaml"
    model.write_text(SMALL)
    batch = 48 // sum(slots)
    done = run(hosts, slots, "--output", tmp_path / "apart", model, f"data.batch_size={batch}")
    assert done.returncode == 0, done.stderr
    alone = run(hosts, [1], "--np", "1", "--output", tmp_path / "alone", model, "data.batch_size=48")
    assert alone.returncode == 0, alone.stderr
    expected = parameters(tmp_path / "alone")
    for name, value in parameters(tmp_path / "apart").items():
        assert value.allclose(expected[name], rtol=1e-6, atol=1e-6), name
    assert summary(tmp_path / "apart")["shard_optimizer"] is False


@pytest.mark.parametrize(
    ("what", "code", "text"),
    [
        ("model={target: 'unlike_models:another_layer'}", 2, "model differs between rank 0 on n1 and rank 2 on n2"),
        ("data={target: 'unlike_models:shuffled'}", 2, "data differs between rank 0 on n1 and rank 2 on n2"),
        ("model={target: 'unlike_models:broken'}", 1, "rank [23] on n2:"),
        ("model={target: 'unlike_models:wide'}", 2, "/dev/shm on n2 has room for "),
    ],
    ids=["another layer", "another order", "an exception", "no room"],
)
def test_one_host_that_differs_is_named(what: str, code: int, text: str, hosts: Hosts, tmp_path: Path) -> None:
    needs("mpirun")
    hosts.run("n2", ["mount", "-o", "remount,size=25m", "/dev/shm"])
    out = tmp_path / "out"
    done = run(hosts, [2, 2], "--no-preflight", "--output", out, DIGITS, what)
    assert done.returncode == code, done.stderr
    assert re.search(text, done.stderr)
    assert "n2" in done.stderr.splitlines()[0]
    assert not out.exists()


def test_a_host_without_shared_memory_trains_with_messages(hosts: Hosts, tmp_path: Path) -> None:
    needs("mpirun")
    hosts.run("n2", ["mount", "-o", "remount,size=100k", "/dev/shm"])
    out = tmp_path / "out"
    done = run(hosts, [2, 2], "--no-preflight", "--output", out, DIGITS, "train.epochs=2")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("reductions go by messages, which is slower") == 1
    assert summary(out)["shard_optimizer"] is False

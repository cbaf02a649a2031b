"""Horovod elastic through `ddl run`: real horovodrun, hosts that come, a rank that dies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.ddl import ddl, ddl_here
from tests.integration.parts import needs

SCRIPT = """\
import json, os, pathlib, time
import horovod.torch as hvd
import torch

hvd.init()
model = torch.nn.Linear(4, 2)
optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
state = hvd.elastic.TorchState(model=model, optimizer=optimizer, sizes=[], total=0.0)

@hvd.elastic.run
def train(state):
    while state.sizes[-3:] != [1, 1, 1] or 2 not in state.sizes:
        pathlib.Path("hosts").write_text("localhost:1\\n127.0.0.1:1\\n")
        if state.sizes[-2:] == [2, 2] and hvd.rank() == 1:
            os._exit(9)
        optimizer.zero_grad()
        model(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        state.sizes = [*state.sizes, hvd.size()]
        state.total = float(sum(p.sum() for p in model.parameters()))
        time.sleep(0.05)
        state.commit()

before = float(sum(p.sum() for p in model.parameters()))
train(state)
if hvd.rank() == 0:
    print(json.dumps([state.sizes, before - state.total]), flush=True)
"""
ELASTIC = ["--launcher", "horovodrun", "--host-discovery-script", "hosts.sh"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hosts.sh").write_text(f"#!/bin/sh\ncat '{tmp_path}/hosts'\n")
    (tmp_path / "hosts.sh").chmod(0o755)
    (tmp_path / "hosts").write_text("localhost:1\n")
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def test_ranks_come_and_go_and_training_goes_on(folder: Path) -> None:
    """Each step takes 2 * 0.1 * 15 from the sum of the parameters, whatever the number of ranks."""
    needs("horovod")
    done = ddl("run", *ELASTIC, "--min-np", "1", "--max-np", "2", "train.py", cwd=folder, timeout=100)
    assert done.returncode == 0, done.stderr
    sizes, moved = json.loads(done.stdout.splitlines()[-1])
    alone, together = sizes.index(2), sizes.count(2)
    assert sizes == [1] * alone + [2] * together + [1] * 3
    assert together == 2, "the step in which a rank died is done again"
    assert moved == pytest.approx(3.0 * len(sizes), rel=1e-4)


def test_a_script_that_fails_on_all_ranks_is_shown(folder: Path) -> None:
    needs("horovod")
    (folder / "train.py").write_text("raise KeyError('lost')\n")
    done = ddl("run", *ELASTIC, "train.py", cwd=folder, timeout=100)
    assert done.returncode == 1
    assert "the first failure: rank 0 on " in done.stderr, done.stderr
    assert "KeyError: 'lost'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-np", "2", "train.py"], "--max-np is for Horovod elastic; give --host-discovery-script too"),
        (["--host-discovery-script", "hosts.sh", "train.py"], "needs --launcher horovodrun"),
        ([*ELASTIC, "--hosts", "n1:2", "train.py"], "--hosts and --host-discovery-script both name the hosts"),
        ([*ELASTIC, "--max-restarts", "1", "train.py"], "--max-restarts cannot be used with "),
        ([*ELASTIC, "--engine", "mpi", "train.py"], "use --engine horovod"),
        ([*ELASTIC, "model.yaml"], "is for scripts that use hvd.elastic; a YAML file resumes from its checkpoints"),
        (
            [*ELASTIC, "--min-np", "3", "--max-np", "2", "train.py"],
            "--max-np: expected at least the 3 ranks of --min-np",
        ),
        (
            [*ELASTIC, "--np", "3", "--max-np", "2", "train.py"],
            "--np: expected 1 to 2 ranks (--min-np, --max-np), got 3",
        ),
        ([*ELASTIC[:-1], "train.py", "train.py"], "train.py cannot be run"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value[:30],
)
def test_what_is_not_elastic_is_refused_in_one_line(arguments: list[str], words: str, folder: Path) -> None:
    needs("horovod")
    done = ddl_here("run", "--dry-run", *arguments, cwd=folder)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1

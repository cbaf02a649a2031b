"""Bad input: one message, exit code 2, no traceback, no files."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.ddl import SMALL, ddl, ddl_here
from tests.integration.parts import needs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m.yaml").write_text(SMALL)
    (tmp_path / "there").mkdir()
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "plain.py").write_text(
        "def model():\n    return 3\n\ndef build():\n    import torch\n    return torch\n"
    )
    (tmp_path / "hosts").write_text("n1 slots=2\nn2 slot=2\n")
    (tmp_path / "few").write_text("localhost slots=2\n")
    (tmp_path / "empty.csv").write_text("a,b\n")
    return tmp_path


COMMAND_LINES: list[tuple[list[str], str]] = [
    (["run", "m.yml"], "m.yml: no such file; did you mean 'm.yaml'?"),
    (["run"], "expected a YAML file (.yaml), a Python script (.py) or -m MODULE"),
    (["run", "model"], "'model': expected a YAML file (.yaml)"),
    (["run", "m.yaml", "train.epoch=3"], "train.epoch: unknown key; did you mean 'epochs'?"),
    (["run", "m.yaml", "train.epochs=x"], "train.epochs: expected an integer, got 'x'"),
    (["run", "--np", "0", "m.yaml"], "--np: expected at least 1 rank, got 0"),
    (["run", "--np", "two", "m.yaml"], "--np: expected a number of ranks, got 'two'"),
    (["run", "--nq", "2", "m.yaml"], "no option '--nq'; did you mean '--np'?"),
    (["rum", "m.yaml"], "no command 'rum'; did you mean 'run'?"),
    (["run", "--engine", "horovd", "m.yaml"], "--engine: no engine 'horovd'; did you mean 'horovod'?"),
    (["run", "--engine", "single", "--np", "2", "m.yaml"], "world of one rank"),
    (["run", "--launcher", "mpiexec", "m.yaml"], "--launcher: no launcher 'mpiexec' (choices: auto, "),
    (["run", "--bind", "sockets", "m.yaml"], "--bind: no binding 'sockets'; did you mean 'socket'?"),
    (["run", "m.yaml", "sync.strategy=allreduc"], "sync.strategy: no 'allreduc' here; did you mean 'allreduce'?"),
    (["run", "--hostfile", "hosts", "m.yaml"], "hosts:2"),
    (["run", "--hostfile", "nowhere", "m.yaml"], "nowhere"),
    (["run", "-H", "n1:x", "m.yaml"], "'x' is not a number of slots"),
    (["run", "--output", "there", "m.yaml"], "there exists"),
    (["run", "--resume", "nowhere", "m.yaml"], "nowhere: no such folder"),
    (["run", "--resume", "latest", "m.yaml"], "no run of m.yaml"),
    (["run", "--tee", "5", "m.yaml"], "--tee: no rank '5'"),
    (["run", "--timeout", "0", "m.yaml"], "--timeout"),
    (["run", "-x", "NOT_SET_ANYWHERE", "m.yaml"], "NOT_SET_ANYWHERE is not set"),
    (["run", "nothing.py"], "nothing.py: no such file"),
    (["run", "m.yaml", "model={target: 'nowhere_at_all:x'}"], "nowhere_at_all"),
    (["validate", "nowhere.yaml"], "nowhere.yaml: no such file"),
    (["list", "model"], "no family 'model'; did you mean 'models'?"),
    (["init", "m.yaml"], "m.yaml exists"),
]
"""Command lines that the command refuses before it makes a run folder."""

JOBS: list[tuple[list[str], str]] = [
    (["run", "--launcher", "local", "--np", "2", "m.yaml"], "local"),
    (["run", "--launcher", "srun", "--np", "2", "m.yaml"], "allocation"),
    (["run", "--hostfile", "few", "--np", "3", "m.yaml"], "localhost"),
    (["run", "--resume", "there", "m.yaml"], "no complete checkpoint"),
    (["run", "m.yaml", "model={target: 'broken:x'}"], "nothing_of_that_name"),
    (["run", "m.yaml", "model={target: 'plain:modle'}"], "did you mean 'model'"),
    (["run", "m.yaml", "model={target: 'plain:model'}"], "Module"),
    (["run", "m.yaml", "data={name: csv, path: none.csv, target: a}"], "none.csv"),
    (["run", "m.yaml", "data={name: csv, path: empty.csv, target: a}"], "empty.csv"),
    (["run", "m.yaml", "optimizer={name: SGD, nesterov: true, lr: 0.1}"], "Nesterov"),
    (["run", "m.yaml", "model=transformer"], "transformer"),
]
"""Command lines that a launcher or a rank refuses; the process removes the run folder at its end.
"""


def ids(cases: list[tuple[list[str], str]]) -> list[str]:
    return [" ".join(arguments) for arguments, _ in cases]


@pytest.mark.parametrize(("arguments", "message"), COMMAND_LINES, ids=ids(COMMAND_LINES))
def test_the_command_refuses_with_one_message_and_writes_nothing(
    arguments: list[str], message: str, folder: Path
) -> None:
    needs("mpirun")
    check(ddl_here, arguments, message, folder)


@pytest.mark.parametrize(("arguments", "message"), JOBS, ids=ids(JOBS))
def test_a_job_is_refused_with_one_message_and_leaves_nothing(arguments: list[str], message: str, folder: Path) -> None:
    needs("mpirun")
    check(ddl, arguments, message, folder)


def check(
    ddl: Callable[..., subprocess.CompletedProcess[str]], arguments: list[str], message: str, folder: Path
) -> None:
    before = sorted(folder.rglob("*"))
    done = ddl(*arguments, cwd=folder)
    assert message in done.stderr
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert [p for p in sorted(folder.rglob("*")) if "__pycache__" not in str(p)] == before


@pytest.mark.parametrize("launcher", ["mpirun"])
def test_what_only_ranks_can_see_is_one_message_too(launcher: str, folder: Path) -> None:
    needs("mpirun")
    done = ddl("run", "--np", "2", "--launcher", launcher, "m.yaml", "model={target: 'broken:x'}", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0, done.stderr
    assert "rank 0 on" in done.stderr
    assert not (folder / "runs").exists()


ALONE = """\
import os, time
from torch import nn
from hvd_train.config import plugins
from hvd_train.errors import UserError

def model():
    def create(package, *arguments, **options):
        if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
            raise UserError("this rank has no licence")
        time.sleep(600)

    plugins.create = create
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.mark.parametrize("pasted", [False, True], ids=["by the command", "pasted"])
def test_a_rank_that_refuses_while_another_never_answers_ends_the_job(pasted: bool, folder: Path) -> None:
    """The rank fails in `plugins.create`, after all ranks have agreed that their models are valid."""
    needs("mpirun")
    (folder / "alone.py").write_text(ALONE)
    told = ["run", "--np", "2", "--output", "out", "m.yaml", "model={target: 'alone:model'}"]
    if pasted:
        line = ddl(*told[:1], "--dry-run", *told[1:], cwd=folder).stdout
        done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    else:
        done = ddl(*told, cwd=folder, timeout=60)
        assert done.stderr.startswith("ddl: this rank has no licence (rank 1 on ")
    assert done.returncode == 2, done.stderr
    assert "this rank has no licence" in done.stderr
    assert not (folder / "out").exists()

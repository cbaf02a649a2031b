"""The commands besides `ddl run`, and properties of all commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cli.launch import engines
from hvd_train.config import plugins
from hvd_train.errors import UserError
from tests.integration.ddl import DIGITS, ddl, ddl_here, heavy
from tests.integration.parts import needs


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--np", "2", "--dry-run", str(DIGITS)],
        ["validate", str(DIGITS)],
        ["schema"],
        ["list", "models"],
        ["list", "optimizers"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    needs("mpirun")
    assert heavy(arguments) == "[]"


def test_the_starter_is_valid_and_learns(tmp_path: Path) -> None:
    needs("mpirun")
    assert ddl_here("init", "my model.yaml", cwd=tmp_path).returncode == 0
    assert ddl_here("validate", "my model.yaml", cwd=tmp_path).stdout == "my model.yaml: valid\n"
    done = ddl("run", "--np", "2", "--output", "out", "my model.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["eval"]["accuracy"] >= 0.95


@pytest.mark.parametrize("family", [*plugins.FAMILIES, "optimizers"])
def test_every_family_is_listed_with_its_members(family: str, tmp_path: Path) -> None:
    listed = ddl_here("list", family, cwd=tmp_path).stdout
    known = plugins.names(plugins.FAMILIES[family]) if family in plugins.FAMILIES else ["SGD", "AdamW", "Muon"]
    first_words = [line.split()[0] for line in listed.splitlines() if not line.startswith(" ")]
    assert set(known) <= set(first_words)


def test_every_optimizer_of_torch_is_known(tmp_path: Path) -> None:
    listed = ddl_here("list", "optimizers", cwd=tmp_path).stdout.splitlines()
    names = {line.split()[0] for line in listed if not line.startswith(" ")}
    real = {n for n, v in vars(torch.optim).items() if isinstance(v, type) and issubclass(v, torch.optim.Optimizer)}
    assert names == real - {"Optimizer"}


@pytest.mark.parametrize(
    ("wanted", "np", "alone", "gpu", "nccl", "expected"),
    [
        ("auto", 1, True, False, False, "single"),
        ("auto", 1, False, False, False, "mpi"),
        ("auto", 2, True, False, True, "mpi"),
        ("auto", 2, True, True, False, "mpi"),
        ("auto", 2, True, True, True, "horovod"),
        ("mpi", 1, True, True, True, "mpi"),
    ],
)
def test_the_engine_that_auto_takes(
    wanted: str, np: int, alone: bool, gpu: bool, nccl: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_has_gpu", lambda: gpu)
    monkeypatch.setattr(engines, "_has_nccl", lambda: nccl)
    assert engines.choose_engine(wanted, np, alone=alone) == expected


def test_horovod_that_is_not_there_is_refused_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="scripts/install-horovod builds it"):
        engines.choose_engine("horovod", 2, alone=True)

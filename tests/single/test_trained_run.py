"""A run folder is found again with its configuration, and its model computes what it did in training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cli.trained.folder import result_folder
from hvd_train.config.chosen import chosen
from hvd_train.config.document import Document
from hvd_train.config.resolve import resolve
from hvd_train.errors import UserError
from hvd_train.saved.model import load_model
from hvd_train.saved.run import Run, find_run
from hvd_train.state.checkpoint_folder import Best
from hvd_train.training import checkpoint
from tests.bodies.trained import digits, table

WHOLE = {
    "model": {"name": "mlp", "hidden": [8]},
    "data": {"name": "digits", "batch_size": 16, "transforms": [{"name": "noise", "std": 0.1}]},
    "optimizer": {"name": "AdamW", "lr": 0.01},
    "train": {
        "metrics": [{"name": "F1Score", "average": "macro"}, {"name": "AUROC", "key": "area"}],
        "early_stop": {},
        "ema": 0.99,
        "loss": {"name": "cross_entropy", "label_smoothing": 0.1},
    },
    "sync": {"strategy": "local_sgd", "period": 3, "compression": {"name": "topk", "ratio": 0.1}},
    "checkpoint": {"best": "f1_score"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("digits"), train={"steps": 6, "eval_every": 3}, checkpoint={"every": 3})


def test_a_saved_configuration_resolves_to_an_equal_one() -> None:
    config = resolve(Document(WHOLE, "test"))
    values = json.loads(json.dumps(config.model_dump()))
    again = resolve(Document(chosen(resolve(Document(values, "saved"))), "again"))
    assert again.model_dump() == config.model_dump()
    assert again.train.early_stop is not None
    assert again.train.metrics[0].options == {"average": "macro"}, "torchmetrics has the other defaults"


def test_a_run_stands_for_its_newest_checkpoint_or_its_best(run: Path, tmp_path: Path) -> None:
    assert find_run(run).checkpoint == run / "checkpoints" / "step-00000006"
    folder = shutil.copytree(run, tmp_path / "copy")
    checkpoint.mark_best(folder / "checkpoints", Best(3, "loss", 0.5))
    assert find_run(folder).checkpoint == folder / "checkpoints" / "step-00000003"
    named = find_run(folder / "checkpoints" / "step-00000006")
    assert (named.folder, named.checkpoint.name) == (folder, "step-00000006")


def test_a_model_computes_what_it_did_in_training(run: Path) -> None:
    loaded = load_model(find_run(run))
    saved = checkpoint.weights(run / "checkpoints" / "step-00000006")
    assert not loaded.module.training
    assert loaded.module.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.module.state_dict().items())
    assert loaded.module(torch.zeros(2, *loaded.spec.input_shape)).shape == (2, 10)


def test_relative_paths_are_those_of_the_folder_where_the_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (elsewhere / "onehot").touch()
    monkeypatch.chdir(home)
    folder = table(home, train={"steps": 2})
    config = json.loads((folder / "config.json").read_text())
    config["data"]["path"] = "table.csv"
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(elsewhere)
    found = find_run(folder)
    assert found.config.data.options["path"] == str(home / "table.csv")
    assert found.config.data.options["categorical"] == "onehot"
    assert found.search_path == [str(elsewhere), str(home)]
    other = find_run(folder, ["path=new.csv"])
    assert other.config.data.options["path"] == "new.csv", "an override is relative to the current folder"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: shutil.rmtree(run), "no such folder; expected the run folder"),
        (lambda run: (run / "config.json").unlink(), "a run of a script has no model that ddl knows"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "the run has no checkpoint; let it reach one"),
        (lambda run: (run / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda run: (run / "config.json").write_text("[]"), "expected a JSON object, got list"),
    ],
    ids=["no folder", "script", "no checkpoint", "damaged", "list"],
)
def test_a_folder_that_is_no_run_is_refused(run: Path, tmp_path: Path, spoil, message: str) -> None:
    folder = shutil.copytree(run, tmp_path / "copy")
    spoil(folder)
    with pytest.raises(UserError, match=message):
        find_run(folder)


def test_a_checkpoint_outside_of_a_run_is_refused(run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(run / "checkpoints" / "step-00000006", tmp_path / "step-00000006")
    with pytest.raises(UserError, match="not in a run folder"):
        find_run(alone)


def test_a_damaged_checkpoint_and_one_of_another_model_are_refused(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model": {"name": "mlp", "hidden": [5]}}))
    with pytest.raises(UserError, match=r"is of another model than config\.json describes: .*size mismatch"):
        load_model(find_run(folder))
    weights = folder / "checkpoints" / "step-00000006" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"the checkpoint is damaged: .*SHA-256"):
        load_model(find_run(folder))


def test_results_are_complete_or_absent(run: Path, tmp_path: Path) -> None:
    found = find_run(run)
    with result_folder(found, "evaluate", tmp_path / "out") as (draft, final):
        (draft / "a.json").write_text("{}")
        assert not final.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ZeroDivisionError):
        _fail_in(found, tmp_path / "other")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UserError, match="out exists"), result_folder(found, "evaluate", tmp_path / "out"):
        pass
    with result_folder(found, "evaluate", None) as (_, final):
        assert final.parent == run
        assert final.name.startswith("evaluate-")


def _fail_in(run: Run, output: Path) -> None:
    with result_folder(run, "evaluate", output) as (draft, _):
        (draft / "half").touch()
        raise ZeroDivisionError

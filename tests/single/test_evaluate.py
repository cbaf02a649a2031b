"""`ddl evaluate`, its ranks as threads: every kind of data, runs of every strategy, and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cli.trained.evaluate import pictures, text
from cli.trained.evaluate.data import held_out
from cli.trained.evaluate.metrics import sections
from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config.document import Document
from hvd_train.config.launch import Launch
from hvd_train.config.resolve import resolve
from hvd_train.errors import UserError
from hvd_train.rank.assemble import Surroundings, assemble
from hvd_train.rank.build import build
from hvd_train.rank.run_folder import describe
from hvd_train.rank.task import TaskContext
from hvd_train.saved.run import Run, find_run
from hvd_train.state.checkpoint_folder import CHECKPOINTS
from hvd_train.trained.tasks import evaluate
from hvd_train.trained.tasks.evaluate import one_thread
from tests.bodies import trained
from tests.bodies.evaluating import assert_close, measured
from tests.bodies.training import ONE_AT_A_TIME
from tests.engines import threads
from tests.integration.ddl import ddl_here

EXPECTED = {
    "digits": ("classes", {"confusion.png", "roc.png", "precision-recall.png", "calibration.png", "worst.png"}),
    "table": ("classes", {"confusion.png", "roc.png", "precision-recall.png", "calibration.png"}),
    "regression": ("numbers", {"residuals.png"}),
    "text": ("tokens", {"calibration.png", "positions.png"}),
    "images": ("classes", {"confusion.png", "roc.png", "precision-recall.png", "calibration.png", "worst.png"}),
    "audio": ("classes", {"confusion.png", "roc.png", "precision-recall.png", "calibration.png", "worst.png"}),
}
Made = Callable[[str], Path]


@pytest.fixture(autouse=True)
def threads_of_ranks() -> Iterator[None]:
    """Compute with one thread: ranks are threads here, and share the cores."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return the run folder of a kind of data, trained once."""
    folders: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = trained.KINDS[kind](tmp_path_factory.mktemp(kind))
        return folders[kind]

    return run


def evaluated(run: Run, comm: Communicator | None = None, split: str = "test") -> dict[str, Any]:
    quiet: Any = SimpleNamespace(errors=2, warn=print)
    context = TaskContext(run.config, comm or SingleCommunicator(), run.checkpoint, run.folder, quiet)
    return evaluate.create(split=split).run(context)


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_kind_of_data_has_a_report_that_ranks_agree_on(kind: str, made: Made, tmp_path: Path) -> None:
    run = find_run(made(kind))
    alone = evaluated(run)
    report, files = EXPECTED[kind]
    assert alone["kind"] == report
    assert set(pictures.save(alone, tmp_path)) == files
    assert all((tmp_path / name).stat().st_size > 5000 for name in files)
    shown = text.text({"checkpoint": "c", **alone}, 120)
    assert "Samples with the largest loss" in shown
    first = threads.run(3, lambda comm: evaluated(run, comm))[0]
    assert_close(measured(first), measured(alone))


def test_the_metrics_are_those_of_training_and_of_the_report(made: Made) -> None:
    run = find_run(made("digits"))
    train = run.config.train.model_copy(update={"metrics": sections("f1,auroc,ece,MatthewsCorrCoef", "classification")})
    found = evaluated(Run(run.folder, run.checkpoint, run.config.model_copy(update={"train": train}), {}, {}))
    metrics, rows = found["metrics"], found["rows"]
    assert metrics["f1"] == pytest.approx(sum(row["f1"] for row in rows) / 10, rel=1e-6)
    bound = sum(row["auroc_error"] for row in rows) / 10
    assert abs(metrics["auroc"] - sum(row["auroc"] for row in rows) / 10) <= bound + 1e-7
    assert metrics["ece"] == pytest.approx(metrics["calibration_error"], rel=1e-5)
    assert 0.5 < metrics["matthews_corr_coef"] < 1
    assert sum(map(sum, found["confusion"])) == found["samples"] == 359


STRATEGIES: dict[str, dict[str, Any]] = {
    "sharded": {"sync": {"shard_optimizer": "auto"}},
    "pipeline": {"parallel": {"pipeline": 2}},
    "federated": {"sync": {"strategy": "federated"}},
    "local_sgd": {"sync": {"strategy": "local_sgd", "period": 3}},
    "averaged": {"train": {"ema": 0.5}},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_of_any_strategy_has_the_loss_of_its_last_evaluation(strategy: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "model": {"name": "mlp", "hidden": [16]},
        "data": {"name": "digits", "batch_size": 32},
        "optimizer": {"name": "AdamW", "lr": 0.01},
        **STRATEGIES[strategy],
    }
    values["train"] = {"steps": 8, "precision": "fp64", **values.get("train", {})}
    with ONE_AT_A_TIME:
        config = resolve(Document(values, "test"))

    def train(comm: Communicator) -> dict[str, Any]:
        with ONE_AT_A_TIME:
            built = build(config, comm)
        comm.barrier()
        trainer = assemble(config, comm, built, Surroundings(checkpoints=tmp_path / CHECKPOINTS))
        trainer.run()
        if comm.rank == 0:
            describe(tmp_path, config, Launch(world_size=2, engine="threads", output=""), built.data)
        return trainer.evaluation.metrics

    last = threads.run(2, train)[0]
    found = evaluated(find_run(tmp_path))["metrics"]
    assert found["loss"] == pytest.approx(last["loss"], rel=1e-12)
    assert found["accuracy"] == last["accuracy"]


def test_another_file_is_encoded_as_in_training_and_keeps_its_order(made: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(made("table").parent, tmp_path / "copy")
    lines = (folder / "table.csv").read_text().splitlines()
    new = tmp_path / "new.csv"
    new.write_text("\n".join([lines[0], *lines[5:30]]) + "\n")
    whole = evaluated(find_run(made("table")), split="train")
    run = find_run(folder / "run", held_out(find_run(folder / "run").config.data, [f"path={new}"]))
    (folder / "table.csv").unlink()
    found = evaluated(run)
    assert found["samples"] == 25
    assert [row["class"] for row in found["rows"]] == [row["class"] for row in whole["rows"]] == ["no", "yes"]
    worst = lines[5 + found["worst"][0]["position"]]
    assert worst.endswith(found["worst"][0]["target"])


def test_files_of_the_worst_samples_are_named(made: Made) -> None:
    worst = evaluated(find_run(made("images")))["worst"]
    assert all(Path(row["file"]).parent.name == row["target"] and Path(row["file"]).is_file() for row in worst)


def test_paths_of_new_samples_are_held_out() -> None:
    config = resolve(Document({"model": "mlp", "data": {"name": "text", "paths": ["a"]}}, "test"))
    assert held_out(config.data, ["paths=b.txt", "length=9"]) == ['paths=["b.txt"]', "test_path=b.txt", "length=9"]
    digits = resolve(Document({"model": "mlp", "data": "digits"}, "test"))
    assert held_out(digits.data, ["seed=3"]) == ["seed=3"]
    with pytest.raises(UserError, match=r"--data: expected one path to evaluate"):
        held_out(config.data, ["paths=[a,b]"])


@pytest.mark.parametrize(
    ("names", "task", "message"),
    [
        ("auro", "classification", "--metrics: no 'auro'; did you mean 'auroc'?"),
        (
            "zz",
            "regression",
            "--metrics: no 'zz' (choices: mae, mape, mse, pearson, r2, rmse, spearman, and the names of",
        ),
        ("F1Scor", "classification", "--metrics: no 'F1Scor'; did you mean 'F1Score'?"),
        ("r2", "classification", "--metrics: 'r2' does not fit the task of the run, classification"),
        ("f1", "regression", "--metrics: 'f1' does not fit the task of the run, regression"),
        (" , ", "regression", "--metrics: expected names such as f1,auroc"),
    ],
)
def test_unknown_metrics_are_refused(names: str, task: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        sections(names, task)
    assert str(caught.value).startswith(message)


def test_short_names_count_each_class_once() -> None:
    (found,) = sections("F1", "classification")
    assert (found.member, found.key, found.options) == ("F1Score", "f1", {"average": "macro"})


def test_splits_without_samples_are_refused(made: Made) -> None:
    run = find_run(made("digits"), ["test_fraction=0"])
    for split, message in (("test", "'test' has no samples"), ("dev", "no 'dev' in the data; expected test, train")):
        with pytest.raises(UserError, match=message):
            evaluated(run, split=split)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("width,height,bought\n1,2,yes\n", "no column 'size'"),
        ("width,height,size,bought\n1,2,small,maybe\n", "'maybe' is no class of the run"),
        ("", "new.csv"),
        ("width,height,size,bought\n", "new.csv"),
    ],
)
def test_files_that_do_not_fit_the_run_are_refused(content: str, message: str, made: Made, tmp_path: Path) -> None:
    new = tmp_path / "new.csv"
    new.write_text(content)
    first = find_run(made("table"))
    with pytest.raises(UserError, match=message):
        evaluated(find_run(made("table"), held_out(first.config.data, [f"path={new}"])))


def test_a_command_without_a_run_or_a_checkpoint_is_refused(made: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(made("digits"), tmp_path / "run")
    shutil.rmtree(folder / CHECKPOINTS)
    for path, message in ((folder, "the run has no checkpoint"), (tmp_path / "runs", "no such folder")):
        done = ddl_here("evaluate", path, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
    done = ddl_here("evaluate", made("digits"), "--metrics", "auro", cwd=tmp_path)
    assert (done.returncode, "did you mean 'auroc'?" in done.stderr) == (2, True)
    assert {path.name for path in made("digits").iterdir()} == {path.name for path in folder.iterdir()} | {CHECKPOINTS}


def test_json_has_no_values_that_only_pictures_show(made: Made) -> None:
    found = json.loads(text.json(evaluated(find_run(made("regression")))))
    assert {"metrics", "rows", "worst", "samples"} <= found.keys()
    assert not {"points", "drawings", "curves"} & found.keys()


def test_long_tables_show_the_worst_rows() -> None:
    rows = [{"class": f"c{i}", "support": 1, "f1": None if i == 9 else i / 100} for i in range(100)]
    table = text._rows("Classes", rows)
    assert table.row_count == text.MOST_ROWS
    assert str(table.title) == "Classes: 30 of 100, by f1"


def test_the_number_of_threads_comes_back() -> None:
    torch.set_num_threads(2)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2

"""Concept activation vectors: directions, scores, their significance, and the task on ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import create as single
from hvd_train.errors import UserError
from hvd_train.rank.logs import Output
from hvd_train.rank.task import TaskContext
from hvd_train.saved.run import find_run
from hvd_train.trained.explaining import concepts
from hvd_train.trained.tasks import tcav
from tests.bodies import trained
from tests.bodies.training import ONE_AT_A_TIME
from tests.engines import threads
from tests.integration.ddl import ddl_here


def model() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(3, 3), nn.Identity(), nn.Linear(3, 2))
    with torch.no_grad():
        made[0].weight.copy_(torch.eye(3))
        made[0].bias.zero_()
        made[2].weight.copy_(torch.tensor([[1.0, 0, 0], [0, -2, 0]]))
    return made


def test_a_vector_points_from_random_examples_to_those_of_the_concept() -> None:
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(60, 4, generator=generator)
    found = concepts.vector(others + torch.tensor([5.0, 0, 0, 0]), others, seed=1)
    assert found.direction[0] > 0.98
    assert found.accuracy > 0.95
    same = concepts.vector(others, torch.randn(60, 4, generator=generator), seed=1)
    assert same.accuracy < 0.75, "examples that do not differ are not separated"


def test_gradients_and_activations_are_those_of_the_layer() -> None:
    made, x = model(), torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    assert torch.equal(concepts.activations(made, "0", lambda: made(x)), x)
    found = concepts.gradients(made, "0", lambda: made(x)[:, 1])
    assert torch.equal(found, torch.tensor([[0.0, -2, 0]]).expand(2, 3))
    assert not made[0]._forward_hooks


def test_a_score_is_the_share_of_samples_that_rise_along_the_direction() -> None:
    gradient = torch.tensor([[1.0, 0], [2, 0], [-1, 0], [0, 7]])
    assert concepts.sensitivity(gradient, torch.tensor([1.0, 0])) == 0.5
    assert concepts.sensitivity(gradient, torch.tensor([0.0, 1])) == 0.25


def test_scores_are_compared_with_those_of_random_examples() -> None:
    assert concepts.probability([1.0, 1.0, 0.9], [0.5, 0.4, 0.6]) < 0.01
    assert concepts.probability([0.5, 0.4, 0.6], [0.6, 0.4, 0.5]) > 0.9
    assert concepts.probability([1.0, 1.0], [1.0, 1.0]) == 1
    assert concepts.probability([1.0, 1.0], [0.5, 0.5]) == 0


def test_the_layer_is_the_second_last_with_weights_or_the_named_one() -> None:
    made = nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
    assert concepts.layer_of(made, None) == "3"
    assert concepts.layer_of(made, "2") == "2"
    with pytest.raises(UserError, match="--layer: no '7' in the model"):
        concepts.layer_of(made, "7")
    with pytest.raises(UserError, match="no hidden layer"):
        concepts.layer_of(nn.Sequential(nn.Linear(3, 2)), None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.digits(tmp_path_factory.mktemp("digits"), train={"steps": 40, "eval_every": 40})


def explained(run: Path, comm: Communicator, **options: Any) -> dict[str, Any]:
    found = find_run(run)
    with ONE_AT_A_TIME:
        task = tcav.create(**{"samples": 20, **options})
    return task.run(TaskContext(found.config, comm, found.checkpoint, run, Output()))


def test_a_class_is_the_concept_that_speaks_most_for_itself_on_any_number_of_ranks(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcav, "VECTORS", 8)
    found = explained(run, single(), concepts="0,1")
    assert (found["layer"], found["concepts"]) == ("1", {"0": 150, "1": 145})
    scores = {(row["concept"], row["class"]): row for row in found["rows"]}
    for name, other in (("0", "1"), ("1", "0")):
        assert scores[name, name]["score"] > 0.9
        assert scores[name, name]["accuracy"] > 0.8
        assert scores[name, other]["score"] < 0.2
    monkeypatch.setattr(tcav, "VECTORS", 3)
    found = explained(run, single(), concepts="0,1")
    ranks = threads.run(3, lambda comm: explained(run, comm, concepts="0,1"))
    assert ranks[0] == found


def test_concepts_of_files_are_read_as_inputs_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcav, "VECTORS", 2)
    run = trained.images(tmp_path)
    pictures = tmp_path / "pictures"
    found = explained(run, single(), concepts=str(pictures), output="dark")
    assert found["concepts"] == {"dark": 20, "light": 20}
    dark, light = (row["score"] for row in found["rows"])
    assert dark > light
    (tmp_path / "few" / "one").mkdir(parents=True)
    with pytest.raises(UserError, match="few/one has 0 examples, expected at least 6"):
        explained(run, single(), concepts=str(tmp_path / "few"))
    with pytest.raises(UserError, match="--concepts: no folder and no class 'drak'; did you mean 'dark'"):
        explained(run, single(), concepts="drak")


def test_other_tasks_than_classification_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is of classes, and the task of the run is regression"):
        explained(trained.regression(tmp_path), single(), concepts="0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "tcav"], "--method tcav: --concepts is missing"),
        (["--layer", "1"], "--layer is for --method tcav"),
        (["--concepts", "3"], "--concepts is for --method tcav"),
    ],
    ids=["missing", "layer", "concepts"],
)
def test_options_of_another_method_are_refused(run: Path, tmp_path: Path, words: list[str], message: str) -> None:
    done = ddl_here("explain", run, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr

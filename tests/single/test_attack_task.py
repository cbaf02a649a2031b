"""The task `attack` on small trained runs, and the checks for masked gradients."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.compute.attacking import Domain, Problem, cross_entropy, seeds_of
from hvd_train.compute.domain import DEVIATIONS, PIXELS, VALUES, domain
from hvd_train.compute.metrics.accuracy import Accuracy
from hvd_train.data.base import Dataset, tensor_split
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.rank.task import TaskContext
from hvd_train.saved.run import find_run
from hvd_train.trained.attacking import masking
from hvd_train.trained.attacking.robustness import curve, levels
from hvd_train.trained.restore import Trained, restore
from hvd_train.trained.tasks import attack
from tests.bodies import trained as runs
from tests.engines import threads


class Quiet:
    errors = 2

    def warn(self, text: str) -> None:
        raise AssertionError(text)


def context(folder: Path, comm: Communicator) -> TaskContext:
    run = find_run(folder)
    output: Any = Quiet()
    return TaskContext(run.config, comm, run.checkpoint, folder, output)


def measured(folder: Path, **options: Any) -> dict[str, Any]:
    return attack.create(**options).run(context(folder, SingleCommunicator()))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def robust_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    adversarial = {"name": "pgd", "epsilon": 0.15, "steps": 4}
    train = {"steps": 60, "eval_every": 60, "adversarial": adversarial}
    return runs.digits(tmp_path_factory.mktemp("robust"), train=train)


PGD_ONLY = {"methods": ["pgd"], "epsilons": [0.0, 0.05, 0.1, 0.15, 0.2], "steps": 5, "queries": 100}


def test_accuracy_at_epsilon_zero_is_the_clean_accuracy_and_falls_monotonically(digits: Path) -> None:
    found = measured(digits, **PGD_ONLY)
    trained, meter = restore(context(digits, SingleCommunicator())), Accuracy()
    trained.execution.evaluate(trained.built.data.test, torch.arange(found["samples"]), meter.update)
    shares = found["attacks"]["accuracy"]["pgd"]
    assert found["samples"] == len(trained.built.data.test) == 359
    assert shares[0] == meter.compute(SingleCommunicator())["accuracy"]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.9 > 0.2 > shares[-1]
    assert found["attacks"]["unit"] == PIXELS
    assert [check["check"] for check in found["attacks"]["checks"] if not check["passed"]] == []


def test_digits_that_were_trained_on_perturbed_samples_are_more_robust(digits: Path, robust_digits: Path) -> None:
    plain, robust = (measured(run, **PGD_ONLY)["attacks"]["accuracy"]["pgd"] for run in (digits, robust_digits))
    assert robust[3] > plain[3] + 0.2
    assert robust[0] > 0.8


def test_results_are_equal_for_every_number_of_ranks(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are threads, each with a model of its own. There are two batches, so one rank has none."""
    options = {
        "methods": ["pgd", "square", "corruptions"],
        "epsilons": [0.1],
        "steps": 3,
        "queries": 10,
        "samples": 70,
    }
    expected = measured(digits, **options)
    ready = [restore(context(digits, SingleCommunicator())) for _ in range(3)]
    monkeypatch.setattr(attack, "restore", lambda context: ready[context.comm.rank])
    for found in threads.run(3, lambda comm: attack.create(**options).run(context(digits, comm))):
        assert json.dumps(found) == json.dumps(expected)


def test_corruptions_of_images_lower_the_accuracy(digits: Path) -> None:
    found = measured(digits, methods=["corruptions"], samples=48)["corruptions"]
    assert found["kind"] == "images"
    assert len(found["by_severity"]) == 15
    values = [v for of_severities in found["by_severity"].values() for v in of_severities]
    assert found["mean"] == pytest.approx(sum(values) / 75)
    assert found["by_severity"]["contrast"][4] < found["clean"] - 0.3


def test_tables_texts_and_regressions(tmp_path: Path) -> None:
    kinds: dict[str, tuple[Callable[[Path], Path], str, str]] = {
        "table": (runs.table, "tables", "accuracy"),
        "text": (runs.text, "texts", "accuracy"),
        "regression": (runs.regression, "tables", "loss"),
    }
    for name, (train, kind, metric) in kinds.items():
        (tmp_path / name).mkdir()
        run = train(tmp_path / name)
        found = measured(run, samples=64, epsilons=[0.3], queries=20)
        assert (found["corruptions"]["kind"], found["corruptions"]["metric"]) == (kind, metric)
        assert set(found["corruptions"]["by_severity"]) == (
            {"missing", "noise", "shift"} if kind == "tables" else {"drop_outs", "swaps", "typos"}
        )
        assert (found["attacks"] is not None) == (name == "table")
        if name == "table":
            assert found["attacks"]["unit"] == DEVIATIONS
            assert found["attacks"]["accuracy"]["pgd"][1] < found["attacks"]["accuracy"]["pgd"][0]
        else:
            with pytest.raises(UserError, match=r"--method: attacks "):
                measured(run, methods=["pgd"], samples=8)


def data(x: Tensor, **facts: Any) -> Dataset:
    split = tensor_split(x, torch.arange(len(x)) % 2)
    return Dataset(split, split, DataSpec(tuple(x.shape[1:]), 2, "classification"), preprocessing=facts)


def test_the_unit_of_epsilon_follows_from_the_data() -> None:
    pixels = torch.rand(5, 3, 4, 4)
    assert domain(data(pixels)).bounds == (0.0, 1.0)
    assert domain(data(pixels * 2 - 1)).unit == VALUES
    assert domain(data(torch.rand(5, 4))).bounds is None
    files = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    normalised = domain(data(pixels * 2 - 1, files=files))
    assert normalised.unit == PIXELS
    assert normalised.scale.flatten().tolist() == pytest.approx([5, 5, 10])
    assert normalised.offset.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    columns = [
        {"name": "a", "kind": "number"},
        {"name": "b", "kind": "onehot", "categories": ["x", "y"]},
        {"name": "c", "kind": "code", "categories": ["x"]},
    ]
    rows = torch.tensor([[1.0, 1, 0, 1], [5.0, 0, 1, 0]])
    assert domain(data(rows, columns=columns)).scale.tolist() == [2.0, 0, 0, 0]


class Masked(nn.Module):
    """A linear model whose gradient vanishes, and which therefore only seems to be robust."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.detach() + 0 * x)  # type: ignore[no-any-return]


def left(model: nn.Module) -> dict[str, float]:
    """Return the accuracies under the trials of the checks."""
    torch.manual_seed(1)
    x = torch.randn(30, 8)
    free = Domain(VALUES, torch.ones(()), torch.zeros(()))
    of = Problem(model, cross_entropy, x, model(x).argmax(1), seeds_of(x), free, 0.0)
    trials = masking.trials(0.3, 5, 200, "linf", free, 8)
    return {n: curve(levels(of, t.attack, t.epsilons).tolist(), t.epsilons)[-1] for n, t in trials.items()}


def failed(accuracy: dict[str, float]) -> list[str]:
    return [str(check["check"]) for check in masking.verdicts(accuracy, 0.3, 5) if not check["passed"]]


def test_masked_gradients_are_found() -> None:
    assert failed(left(Masked().inner)) == []
    assert "black box" in failed(left(Masked()))


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({}, []),
        ({"black_box": 0.28}, ["black box"]),
        ({"single": 0.1}, ["iterated"]),
        ({"longer": 0.5, "black_box": 0.6}, ["more steps"]),
        ({"unbounded": 0.2}, ["unbounded"]),
    ],
)
def test_each_sign_of_masked_gradients_is_one_sentence(changed: dict[str, float], names: Sequence[str]) -> None:
    accuracy = {"single": 0.5, "iterated": 0.3, "longer": 0.3, "black_box": 0.4, "unbounded": 0.0}
    checks = masking.verdicts({**accuracy, **changed}, 0.1, 10)
    assert [check["check"] for check in checks if not check["passed"]] == names
    assert all(str(check["sentence"]).endswith(".") for check in checks)


def test_the_checks_use_the_epsilon_that_breaks_half() -> None:
    assert masking.most_informative([1.0, 0.8, 0.45, 0.1], [0.0, 0.1, 0.2, 0.3]) == 0.2
    assert masking.doubled(0.3, 1.0) == pytest.approx([0.3, 0.6, 1.0])
    assert masking.doubled(2.0, 1.0) == [2.0]


def test_a_split_without_samples_is_refused(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready: Trained = restore(context(digits, SingleCommunicator()))
    monkeypatch.setattr(attack, "restore", lambda context: ready)
    monkeypatch.setattr(attack, "on_split", lambda trained, name: [])
    with pytest.raises(UserError, match="'test' has no samples"):
        attack.create().run(context(digits, SingleCommunicator()))

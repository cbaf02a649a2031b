"""Ranks with different facts report one sentence: the difference, the ranks and the host."""

from __future__ import annotations

import random
import re
import socket
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hvd_train.comm.agree import agree, first_problem, same, together
from hvd_train.comm.communicator import Communicator
from hvd_train.data.base import Dataset, TensorSplit, tensor_split
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.rank.alike import _samples, check_alike
from tests.engines import threads

HOST = socket.gethostname()
CPU = torch.device("cpu")


def refusal(task: Callable[[Communicator], object], size: int = 3) -> str | None:
    """Return the text that `task` raises on every rank, None if it raises nothing."""

    def body(comm: Communicator) -> str | None:
        try:
            task(comm)
        except UserError as error:
            return str(error)
        return None

    (text,) = set(threads.run(size, body, timeout=20))
    return text


def dataset(x: Tensor, y: Tensor) -> Dataset:
    return Dataset(tensor_split(x, y), tensor_split(x[:3], y[:3]), DataSpec(tuple(x.shape[1:]), 3, "classification"))


X, Y = torch.arange(60.0).view(20, 3) / 7, torch.arange(20) % 3


class Noisy(TensorSplit):
    """Samples with noise from torch's generator, like augmented ones."""

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = super().batch(indices)
        return x + torch.rand(()) / 100, y


class Own(TensorSplit):
    """Samples with noise from an unseeded generator of the data set."""

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        x, y = super().batch(indices)
        return x + float(np.random.default_rng().random()), y


def model(*more: nn.Module, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4, bias=bias), *more)


def frozen() -> nn.Module:
    made = model()
    made[0].bias.requires_grad_(False)
    return made


DATA: dict[str, tuple[Dataset, str | None]] = {
    "the same": (dataset(X.clone(), Y.clone()), None),
    "rounded otherwise": (dataset(X * (1 + 1e-6), Y), None),
    "fewer samples": (dataset(X[:18], Y[:18]), "'number of training samples' is 20, on rank 1 18"),
    "another order": (dataset(X.flip(0), Y.flip(0)), "'hash of the training labels' is "),
    "other numbers": (dataset(X.flip(1), Y), "'numbers of the first, middle and last training sample' is "),
    "more columns": (dataset(torch.cat([X, X], 1), Y), "'numbers of the first, middle and last training sample' is "),
    "other held-out samples": (
        Dataset(tensor_split(X, Y), tensor_split(X[1:4], Y[:3]), DataSpec((3,), 3, "classification")),
        "'numbers of the first, middle and last held-out sample' is ",
    ),
}
MODELS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "the same": (model, None),
    "an extra layer": (lambda: model(nn.Linear(4, 4)), "only rank 1 has '1.weight' ([4, 4] float32, trained)"),
    "a layer less": (lambda: model(bias=False), "rank 1 has no '0.bias'"),
    "another shape": (
        lambda: nn.Sequential(nn.Linear(3, 5)),
        "'0.weight' is [4, 3] float32, trained, on rank 1 [5, 3]",
    ),
    "another dtype": (lambda: model().double(), "'0.weight' is [4, 3] float32, trained, on rank 1 [4, 3] float64"),
    "a frozen layer": (frozen, "'0.bias' is [4] float32, trained, on rank 1 [4] float32;"),
    "another order": (
        lambda: nn.Sequential(OrderedDict(reversed(model(nn.Linear(4, 4))._modules.items()))),
        "'0.weight' is number 1, on rank 1 number 3",
    ),
    "another buffer": (lambda: model(nn.BatchNorm1d(4)), "only rank 1 has '1.weight'"),
}


@pytest.mark.parametrize("case", DATA)
def test_data(case: str) -> None:
    other, expected = DATA[case]
    text = refusal(lambda comm: check_alike(comm, other if comm.rank == 1 else dataset(X, Y), model(), CPU))
    assert (text is None) == (expected is None), text
    if expected:
        assert text is not None
        assert text.startswith(f"data differs between rank 0 on {HOST} and rank 1 on {HOST}: {expected}")
        assert "without a fixed seed" in text


@pytest.mark.parametrize("case", MODELS)
def test_models(case: str) -> None:
    make, expected = MODELS[case]
    usual = model(nn.Linear(4, 4)) if case == "another order" else model()
    text = refusal(lambda comm: check_alike(comm, dataset(X, Y), make() if comm.rank == 1 else usual, CPU))
    assert (text is None) == (expected is None), text
    if expected:
        assert text is not None
        assert text.startswith(f"model differs between rank 0 on {HOST} and rank 1 on {HOST}: {expected}")


def test_samples_that_are_augmented_are_drawn_alike_and_those_that_nobody_can_draw_again_are_not_compared() -> None:
    torch.manual_seed(7)
    figures = _samples(Noisy(X, Y, Y))
    torch.manual_seed(8)
    assert figures == _samples(Noisy(X, Y, Y)) is not None
    assert figures != _samples(Noisy(X.flip(0), Y, Y))
    assert _samples(Own(X, Y, Y)) is None


def test_devices() -> None:
    text = refusal(
        lambda comm: check_alike(comm, dataset(X, Y), model(), torch.device("cuda" if comm.rank == 2 else "cpu"))
    )
    assert text == (
        f"train.device differs between rank 0 on {HOST} and rank 2 on {HOST}: 'device' is cpu, on rank 2 cuda; "
        "name one that all hosts have, such as train.device=cpu"
    )


def test_one_rank_that_refuses_takes_all_along() -> None:
    def task(rank: int) -> int:
        if rank == 2:
            raise UserError("data.csv: no such file")
        return rank

    assert refusal(lambda comm: together(comm, lambda: task(comm.rank))) == f"data.csv: no such file (rank 2 on {HOST})"
    assert refusal(lambda comm: together(comm, lambda: task(2))) == f"data.csv: no such file (rank 0 on {HOST})"
    assert refusal(lambda comm: together(comm, lambda: task(2)), size=1) == "data.csv: no such file"
    assert threads.run(2, lambda comm: together(comm, lambda: task(comm.rank))) == [0, 1]


def test_a_problem_of_all_ranks_names_none() -> None:
    assert threads.run(2, lambda comm: first_problem(comm, "no such option")) == ["no such option"] * 2
    text = f"no memory (rank 1 on {HOST})"
    assert threads.run(3, lambda comm: first_problem(comm, "no memory" if comm.rank == 1 else None)) == [text] * 3
    assert threads.run(2, lambda comm: first_problem(comm, None)) == [None] * 2


def test_agree_takes_the_first_that_is_not_none() -> None:
    assert threads.run(3, lambda comm: agree(comm, [None, 0, 1][comm.rank])) == [0, 0, 0]
    assert threads.run(2, lambda comm: agree(comm, None)) == [None, None]


@pytest.mark.parametrize("facts", [{"a": 1.0, "b": [2.0]}, {"a": 1.0, "b": [2.0, 3.0]}, {"a": 1.0005, "b": [2.0]}])
def test_floats_are_compared_to_a_thousandth(facts: dict[str, Any]) -> None:
    text = refusal(lambda comm: same(comm, "it", facts if comm.rank else {"a": 1.0, "b": [2.0]}, "mend it"), size=2)
    assert (text is None) == (len(facts["b"]) == 1)


def test_every_generator_is_seeded_before_the_users_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from hvd_train.comm.engines.single import SingleCommunicator
    from hvd_train.rank.build import build
    from tests.bodies import training as body

    drawn: list[tuple[Any, ...]] = []
    made = body.classification()

    def data() -> Dataset:
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))
        return made

    monkeypatch.setattr("tests.bodies.training.classification", data)
    for before in (1, 2):
        random.seed(before)
        np.random.seed(before)
        torch.manual_seed(before)
        build(body.configuration(), SingleCommunicator())
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 3


def test_the_sentence_names_no_python(capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        refusal(lambda comm: check_alike(comm, dataset(X[: 20 - comm.rank], Y[: 20 - comm.rank]), model(), CPU)) or ""
    )
    assert not re.search(r"torch\.|Tensor|Traceback", text)

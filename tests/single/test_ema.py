"""`train.ema` on threads; `tests/parallel/test_ema.py` uses mpirun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config.schema import EmaSection
from hvd_train.errors import UserError
from hvd_train.sync.view import View
from hvd_train.training import checkpoint
from hvd_train.training.ema import ParameterAverage, decay
from tests.bodies import ema as body
from tests.bodies import training
from tests.engines import threads


@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies_on_threads(check: Any) -> None:
    threads.run(3, check)


@pytest.mark.parametrize("check", body.IN_FOLDER, ids=lambda f: f.__name__)
def test_bodies_in_a_folder_on_threads(check: Any, tmp_path: Path) -> None:
    threads.run(2, lambda comm: check(comm, tmp_path))


@pytest.mark.parametrize(
    ("most", "step", "warmup", "expected"),
    [(0.9, 1, False, 0.9), (0.9, 1, True, 2 / 11), (0.9, 80, True, 0.9), (0.9, 79, True, 80 / 89), (0.0, 5, True, 0.0)],
)
def test_decay(most: float, step: int, warmup: bool, expected: float) -> None:
    assert decay(most, step, warmup=warmup) == expected


def test_a_number_in_place_of_the_section_is_the_decay() -> None:
    assert training.configuration(train={"ema": 0.9}).model_dump()["train"]["ema"] == {"decay": 0.9, "warmup": False}
    with pytest.raises(UserError, match=r"train\.ema\.decay: expected"):
        training.configuration(train={"ema": 1.0})


@pytest.mark.parametrize("strategy", ["federated", "independent", "async_ps", "ssp", "async_gossip"])
def test_strategies_without_a_mean_model_after_each_step_are_refused(strategy: str) -> None:
    config = training.configuration(train={"ema": 0.9}, sync={"strategy": strategy, "fusion_mb": None})

    def told(comm: Communicator) -> None:
        with pytest.raises(UserError, match=r"train\.ema: it averages the model of all ranks after each step"):
            training.trainer(comm, config)

    threads.run(2, told)


def test_push_sum_is_refused() -> None:
    sync = {"strategy": "gossip", "push_sum": True, "topology": "exponential", "fusion_mb": None}
    with pytest.raises(UserError, match=r"train\.ema"):
        training.trainer(SingleCommunicator(), training.configuration(train={"ema": 0.9}, sync=sync))


def test_a_checkpoint_without_an_average_is_resumed_from_its_parameters(tmp_path: Path) -> None:
    comm = SingleCommunicator()
    config = body.configuration({}, ema=None, steps=3)
    training.trainer(comm, config, checkpoints=tmp_path / "checkpoints").run()
    job, watch = body.watched(comm, body.configuration({}))
    warnings: list[str] = []
    job.restore(checkpoint.load(tmp_path, comm, print), warnings.append)
    job.run()
    assert [text for text in warnings if "no averaged parameters" in text]
    training.assert_close(body.shown(job), body.folded(watch.parameters), 1e-9)


def test_parameters_of_every_kind_are_averaged_and_buffers_are_not() -> None:
    model = nn.BatchNorm1d(2).double()
    model.register_parameter("phase", nn.Parameter(torch.tensor([1 + 2j])))
    model.register_parameter("fixed", nn.Parameter(torch.tensor([3.0]), requires_grad=False))
    model.register_parameter("index", nn.Parameter(torch.tensor([3]), requires_grad=False))
    average = ParameterAverage(EmaSection(decay=0.75), model, View())
    average.start()
    with torch.no_grad():
        for tensor in (*model.parameters(), model.running_mean):
            assert tensor is not None
            tensor.add_(4)
    average.update(1)
    with average.shown():
        assert model.phase.tolist() == [2 + 2j]
        assert model.weight.tolist() == [2.0, 2.0]
        assert model.fixed.tolist() == [4.0]
        assert model.index.tolist() == [7]
        assert model.running_mean is not None
        assert model.running_mean.tolist() == [4.0, 4.0]
    assert model.phase.tolist() == [5 + 2j]

"""Model parallelism on threads; `tests/parallel/test_parallelism.py` uses mpirun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config import plugins
from hvd_train.errors import UserError
from hvd_train.gradients.compressors.none import Identity
from hvd_train.sync.base import Context
from hvd_train.training import checkpoint
from tests.bodies import parallelism as body
from tests.bodies import training
from tests.engines import threads


@pytest.mark.parametrize("size", [2, 4, 8])
def test_equals_one_process(size: int) -> None:
    chosen = body.cases(size) if size < 8 else body.few(size)
    threads.run(size, lambda comm: body.equals_one_process(comm, chosen))


@pytest.mark.parametrize("check", body.RESUMING, ids=lambda f: f.__name__)
def test_resuming(check: Any, tmp_path: Path) -> None:
    threads.run(4, lambda comm: check(comm, tmp_path))


def test_convolutions_equal_one_process() -> None:
    threads.run(2, body.convolutions_equal_one_process)


def test_local_sgd_of_parts_equals_that_of_whole_models() -> None:
    threads.run(4, body.local_sgd_of_parts_equals_that_of_whole_models)


@pytest.mark.parametrize("strategy", plugins.names("hvd_train.sync.strategies"))
def test_every_strategy_takes_parts_or_says_that_it_does_not(strategy: str) -> None:
    def made(comm: Communicator) -> bool:
        try:
            context = Context(comm, Identity(), split=True)
            return bool(plugins.create("hvd_train.sync.strategies", strategy, context).takes_parts)
        except UserError as error:
            return "parallel.pipeline and parallel.tensor to 1" in str(error)

    assert all(threads.run(2, made))


def test_compressed_rounds_are_refused() -> None:
    context = Context(SingleCommunicator(), plugins.create("hvd_train.gradients.compressors", "fp16"), split=True)
    with pytest.raises(UserError, match=r"sync.compression.*parallel.tensor to 1"):
        plugins.create("hvd_train.sync.strategies", "local_sgd", context)


def test_measured_shares_are_refused() -> None:
    def refused(comm: Communicator) -> None:
        data = {"partition": "weighted"}
        with pytest.raises(UserError, match=r"data.partition.weights.*list"):
            training.trainer(comm, body.configuration("mlp", "sgd", 8, 1, data=data, parallel={"tensor": 2}))

    threads.run(2, refused)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    def refused(comm: Communicator) -> None:
        training.trainer(comm, body.saving(1, 8, parallel={"pipeline": 2}), checkpoints=tmp_path / "checkpoints").run()
        wide = {"model": {"name": "transformer", "layers": 2, "width": 16, "heads": 4, "target": None}}
        other = training.trainer(comm, body.saving(1, 8, parallel={"pipeline": 2}, **wide))
        with pytest.raises(
            UserError, match=r"another model: 'blocks.0.attention.0.bias' is of shape \(8,\) there and .*16"
        ):
            other.restore(checkpoint.load(tmp_path, comm, print))

    threads.run(2, refused)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_parameters_are_divided(size: int) -> None:
    threads.run(size, body.parameters_are_divided)


@pytest.mark.parametrize("check", body.BODIES[1:3], ids=lambda f: f.__name__)
def test_bodies(check: Any) -> None:
    threads.run(4, check)

"""`model.freeze`: parameters that keep their first values, and cost nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config import plugins
from hvd_train.errors import UserError
from hvd_train.saved.model import load_model
from hvd_train.saved.run import find_run
from tests.bodies import training
from tests.bodies.trained import digits
from tests.engines import threads

MODEL = {"name": "mlp", "hidden": [8, 8], "target": None}


def configuration(patterns: list[str], **sections: Any) -> Any:
    return training.configuration(model={**MODEL, "freeze": patterns}, **sections)


@pytest.mark.parametrize("strategy", ["allreduce", "local_sgd", "parameter_server"])
def test_frozen_parameters_keep_their_values_and_are_not_sent(strategy: str) -> None:
    def run(comm: Communicator, patterns: list[str]) -> tuple[set[str], int]:
        job = training.trainer(comm, configuration(patterns, sync={"strategy": strategy, "fusion_mb": None}))
        before = {name: p.detach().clone() for name, p in job.model.named_parameters()}
        job.run()
        moved = {name for name, p in job.model.named_parameters() if not torch.equal(p, before[name])}
        return moved, job.accounting.bytes_sent

    frozen = threads.run(2, lambda comm: run(comm, ["1.*", "4.weight"]))
    whole = threads.run(2, lambda comm: run(comm, []))
    assert {frozenset(moved) for moved, _ in frozen} == {frozenset({"4.bias", "7.weight", "7.bias"})}
    assert sum(sent for _, sent in frozen) < 0.3 * sum(sent for _, sent in whole)


def test_optimizers_have_no_state_of_frozen_parameters() -> None:
    job = training.trainer(SingleCommunicator(), configuration(["*bias"], optimizer={"name": "Adam", "momentum": None}))
    job.run()
    assert set(job.optimizer.state()) == {name for name, _ in job.model.named_parameters() if name.endswith("weight")}


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"model.freeze: '1.weigth' fits no parameter.*did you mean '1.weight'"):
        training.trainer(SingleCommunicator(), configuration(["*bias", "1.weigth"]))
    with pytest.raises(UserError, match="no parameter requires a gradient"):
        training.trainer(SingleCommunicator(), configuration(["*"]))


def test_a_saved_run_is_read_with_its_frozen_parameters(tmp_path: Path) -> None:
    model = {"name": "mlp", "hidden": [8], "freeze": ["1.*"]}
    run = digits(tmp_path, model=model, train={"steps": 2, "eval_every": 2})
    loaded = load_model(find_run(run)).module
    fresh = plugins.create("hvd_train.models.zoo", "mlp", load_model(find_run(run)).spec, hidden=[8])
    assert [p.requires_grad for p in loaded.parameters()] == [False, False, True, True]
    assert loaded.state_dict().keys() == fresh.state_dict().keys()

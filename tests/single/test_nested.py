"""Nested batches, counted units and streams on threads and on one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.compute.calling import caller
from hvd_train.data.batch import divide
from hvd_train.errors import UserError
from tests.bodies import nested, training
from tests.engines import threads


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("check", nested.BODIES, ids=lambda f: f.__name__)
def test_bodies_on_threads(check: Any, size: int) -> None:
    threads.run(size, check)


@pytest.mark.parametrize("size", [1, 2])
def test_a_stream_resumes(size: int, tmp_path: Path) -> None:
    threads.run(size, lambda comm: nested.streams_resume(comm, tmp_path / "checkpoints"))


@pytest.mark.parametrize(
    "sync", ["local_sgd", "parameter_server", "gossip", {"strategy": "allreduce", "shard_optimizer": True}]
)
def test_strategies_take_counted_units(sync: Any) -> None:
    sections = {
        **nested.CASES["tokens, a loss of parts"],
        "sync": sync if isinstance(sync, dict) else {"strategy": sync},
    }
    job = threads.run(2, lambda comm: _run(comm, training.configuration(**sections)))[0]
    assert job.evaluation.metrics["loss"] < 1.7
    assert {"loss", "loss_fit", "loss_size", "accuracy"} <= job.evaluation.metrics.keys()


def _run(comm: Any, config: Any) -> Any:
    job = training.trainer(comm, config)
    job.run()
    return job


def test_a_stream_needs_steps_and_no_partition() -> None:
    with pytest.raises(UserError, match=r"train.steps: is missing, and the training data has no length"):
        training.trainer(SingleCommunicator(), nested.stream(9, 3))
    config = nested.stream(9, 3, steps=2)
    other = training.configuration(
        model={"target": "tests.bodies.nested:OfTwo"},
        data={"target": "tests.bodies.nested:Stream", "partition": "contiguous"},
        train={"loss": "cross_entropy", "epochs": None, "steps": 2},
    )
    training.trainer(SingleCommunicator(), config)
    with pytest.raises(UserError, match=r"data.partition: 'contiguous' needs samples with positions"):
        training.trainer(SingleCommunicator(), other)


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(UserError, match="the training set is empty"):
        training.trainer(SingleCommunicator(), nested.stream(0, 3, steps=2))


class Takes(nn.Module):
    """Returns the arguments that it was called with."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.forward = forward


@pytest.mark.parametrize(
    ("forward", "inputs", "expected"),
    [
        (lambda x: ("x", x), 1, ("x", 1)),
        (lambda x: ("x", x), (1, 2), ("x", (1, 2))),
        (lambda a, b: (a, b), (1, 2), (1, 2)),
        (lambda a, b, c=3: (a, b, c), (1, 2), (1, 2, 3)),
        (lambda *a: a, (1, 2, 4), (1, 2, 4)),
        (lambda a, b=0: (a, b), {"a": 1, "c": 2}, (1, 0)),
        (lambda **k: k, {"a": 1, "text": ["x"]}, {"a": 1}),
        (lambda batch: batch, {"a": 1}, {"a": 1}),
    ],
)
def test_a_model_is_called_as_its_forward_takes_the_inputs(forward: Any, inputs: Any, expected: Any) -> None:
    assert caller(Takes(forward))(inputs) == expected


def test_a_batch_divides_into_inputs_and_targets() -> None:
    x, y = torch.ones(2), torch.zeros(2)
    assert (divide((x, y)).inputs is x, divide((x, y)).targets is y) == (True, True)
    assert divide((x, x, y)).inputs == (x, x)
    assert divide({"a": x, "label": y, "y": x}).inputs == {"a": x, "y": x}
    assert divide({"a": x, "y": y}, "y").targets is y
    assert divide({"a": x, "y": y}, keep_targets=True).inputs == {"a": x, "y": y}
    assert divide(x).targets is None
    with pytest.raises(UserError, match=r"data.label_key: no 'z' in the samples.*"):
        divide({"a": x, "y": y}, "z")


def test_a_loss_that_does_not_take_the_held_out_targets_is_refused() -> None:
    """Mixup makes probabilities of the classes in training, not in evaluations."""
    config = training.configuration(
        data={"transforms": ["mixup"]}, train={"loss": "mse", "precision": "fp32"}, sync={"fusion_mb": None}
    )
    with pytest.raises(UserError, match=r"train.loss: .*first sample"):
        training.trainer(SingleCommunicator(), config)

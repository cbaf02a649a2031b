"""Strategies whose replicas differ while they train, on threads.

`tests/parallel/test_replicas.py` runs the bodies under mpirun.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config import plugins
from hvd_train.errors import UserError
from hvd_train.gradients.compression.base import Compressor
from hvd_train.gradients.compressors import int8, topk
from hvd_train.gradients.compressors.none import Identity
from hvd_train.sync.base import Context
from hvd_train.sync.replicas.rounds import Change
from hvd_train.training import checkpoint
from tests.bodies import replicas as body
from tests.bodies import training
from tests.engines import threads


@pytest.fixture(autouse=True)
def one_thread_each() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("check", body.BODIES, ids=lambda f: f.__name__)
def test_bodies_on_threads(check: Any, size: int) -> None:
    threads.run(size, check)


@pytest.mark.parametrize("name", body.RESUMED)
def test_resumed_is_bitwise_equal_alone(name: str, tmp_path: Path) -> None:
    """Threads share the generators that dropout draws from."""
    sync, train = body.RESUMED[name]
    body.resumed_is_bitwise_equal(SingleCommunicator(), tmp_path, sync, **train)


@pytest.mark.parametrize("name", body.RESUMED)
def test_another_number_of_ranks_goes_on_from_the_mean(name: str, tmp_path: Path) -> None:
    """Four ranks stop between two averages; with push-sum the mean is that of x_i, not of z_i."""
    sync, _ = body.RESUMED[name]

    def config(comm: Communicator, steps: int) -> Any:
        return body.configuration(comm, steps, sync, train={"steps": steps, "epochs": None})

    def first(comm: Communicator) -> tuple[Tensor, Tensor]:
        job = training.trainer(comm, config(comm, 7), checkpoints=tmp_path / "checkpoints")
        job.strategy.finish = lambda: None  # type: ignore[method-assign]
        job.run()
        push_sum = getattr(job.strategy, "_push_sum", None)
        biased = push_sum._biased if push_sum else []
        return body.vector(job.model), torch.cat([x.clone() for x in biased]) if biased else torch.empty(0)

    def then(comm: Communicator) -> Tensor:
        job, recorder = body.recorded(comm, config(comm, 9))
        job.restore(checkpoint.load(tmp_path, comm, print))
        start: Any = job.strategy.start
        began: list[Tensor] = []
        job.strategy.start = lambda model: (start(model), began.append(body.vector(model)))  # type: ignore[method-assign]
        job.run()
        assert len(recorder.parameters) == 2
        return began[0]

    ends = threads.run(4, first)
    mean = torch.stack([own for own, _ in ends]).mean(0)
    for began in threads.run(2, then):
        if len(ends[0][1]):
            assert float(began.sum()) == pytest.approx(float(torch.stack([x for _, x in ends]).mean(0).sum()), rel=1e-9)
        else:
            torch.testing.assert_close(began, mean)


def test_greedy_without_held_out_samples_is_refused() -> None:
    context = Context(SingleCommunicator(), Identity())
    with pytest.raises(UserError, match=r"sync\.merge: greedy needs held-out samples.* take mean or weighted"):
        plugins.create("hvd_train.sync.strategies", "independent", context, merge="greedy")


@pytest.mark.parametrize("compressor", [topk.create(ratio=0.3), int8.create()], ids=["topk", "int8"])
def test_changes_that_a_compressor_holds_back_are_sent_later(compressor: Compressor) -> None:
    """Once replicas stop, the mean catches up; int8, which keeps no residual, nearly does."""

    def run(comm: Communicator) -> None:
        generator = torch.Generator().manual_seed(comm.rank)
        anchor, moved = torch.zeros(20), torch.zeros(20)
        change = Change([torch.Size([4, 3]), torch.Size([8])], anchor, compressor, comm, seed=comm.rank)
        for number in range(40):
            step = torch.randn(20, generator=generator) * (number < 30)
            moved += step
            flat = anchor + step
            change.average_(flat, anchor)
            anchor = flat
        comm.all_reduce_(moved, "mean")
        tolerance = 1e-4 if "residual" in change.reducer.state() else 0.3
        torch.testing.assert_close(anchor, moved, rtol=0, atol=tolerance)

    threads.run(3, run)


def test_digits_are_learnt_as_well_as_by_allreduce() -> None:
    """After the same epochs on four ranks: within 2 points, without communication within 5."""

    def accuracy(comm: Communicator, sync: dict[str, Any]) -> float:
        job = training.trainer(comm, digits(sync))
        job.run()
        return job.evaluation.metrics["accuracy"]

    reference = threads.run(4, lambda comm: accuracy(comm, {"strategy": "allreduce"}))[0]
    assert reference > 0.93
    for name in ("local_sgd", "diloco", "adaptive", "gossip", "independent"):
        points = 5 if name == "independent" else 2
        reached = threads.run(4, lambda comm, name=name: accuracy(comm, {"strategy": name}))[0]  # type: ignore[misc]
        assert reached >= reference - points / 100, f"{name}: {reached:.3f} against {reference:.3f}"


def digits(sync: dict[str, Any]) -> Any:
    return training.configuration(
        model={"name": "mlp", "hidden": [64], "target": None},
        data={"name": "digits", "target": None},
        optimizer={"weight_decay": None},
        train={"epochs": 5, "precision": "fp32", "eval_every": 1000},
        sync={"fusion_mb": None, **sync},
    )

"""Plans of epochs whose workers have their own batch sizes. `tests/parallel/test_heterogeneous.py` runs the bodies too."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config import plugins
from hvd_train.errors import UserError
from hvd_train.training.sampler import Epoch, Sampler, Workers, smoothed
from tests.bodies import heterogeneous
from tests.engines import threads


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("check", heterogeneous.BODIES, ids=lambda f: f.__name__)
def test_bodies_on_threads(check: Any, size: int) -> None:
    threads.run(size, check)


def test_resumed_is_bitwise_equal(tmp_path: Path) -> None:
    threads.run(3, lambda comm: heterogeneous.resumed_is_bitwise_equal(comm, tmp_path))


def sampler(
    comm: Communicator, n: int, weights: Any, batch: int = 4, *, accumulate: int = 1, workers: Workers | None = None
) -> Sampler:
    partitioner = plugins.create("hvd_train.data.partitions", "weighted", weights=weights)
    workers = workers or (lambda epoch: (comm.rank, comm.size))
    return Sampler(torch.zeros(n), partitioner, workers, comm, batch, accumulate, seed=0)


@given(
    st.integers(1, 200),
    st.lists(st.floats(0.01, 100), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_workers_take_equally_many_steps_and_every_sample_once(
    n: int, weights: list[float], batch: int, accumulate: int
) -> None:
    size, full = len(weights), len(weights) * batch * accumulate

    def plan(comm: Communicator) -> Epoch:
        return sampler(comm, n, weights, batch, accumulate=accumulate).epoch(2)

    epochs = threads.run(size, plan)
    steps = math.ceil(n / full)
    assert {epoch.steps for epoch in epochs} == {steps}
    assert sum(epochs[0].batch_sizes) == size * batch
    assert min(epochs[0].batch_sizes) >= 1
    assert [epochs[-1].samples(s) for s in range(steps)] == [full] * (n // full) + [n % full] * (n % full > 0)
    for step in range(steps):
        of_ranks = [epoch.micro_batches(step) for epoch in epochs]
        assert sum(len(b) for batches in of_ranks for b in batches) == epochs[0].samples(step)
        for epoch, batches in zip(epochs, of_ranks, strict=True):
            assert all(len(b) <= epoch.batch_size for b in batches)
            assert len(batches) <= accumulate
    assert sorted(int(i) for epoch in epochs for i in epoch.indices) == list(range(n))


@pytest.mark.parametrize(
    ("weights", "measured", "expected"),
    [
        ([], [(1, 30), (3, 30)], [0.75, 0.25]),
        ([], [(2, 10), (1, 30), (1, 10)], [1 / 9, 6 / 9, 2 / 9]),
        ([0.5, 0.5], [(1, 30), (3, 30)], [0.625, 0.375]),
        ([0.75, 0.25], [(1, 30), (1, 10)], [0.75, 0.25]),
        ([0.75, 0.25], [(1, 30), (0, 0)], [0.75, 0.25]),
        ([], [(1, 30), (0, 0)], []),
    ],
)
def test_smoothed_speeds(weights: list[float], measured: list[tuple[float, float]], expected: list[float]) -> None:
    assert smoothed(weights, measured) == pytest.approx(expected)


def after_epochs(comm: Communicator, seconds: Any, epochs: int, batch: int = 16) -> list[tuple[int, ...]]:
    """Batch sizes of one epoch after another, of workers that take `seconds(rank, batch size)` for a step."""
    one = sampler(comm, 10_000, "auto", batch)
    found = []
    for number in range(epochs):
        epoch = one.epoch(number)
        found.append(epoch.batch_sizes)
        for step in range(epoch.steps):
            own = sum(map(len, epoch.micro_batches(step)))
            one.record(seconds(comm.rank, own), own)
    return found


def test_shares_converge_although_a_step_has_a_fixed_cost() -> None:
    """3 + b ms against 3 + 5 b ms, 32 samples together: 26 and 5 take 29 and 28 ms."""
    found = threads.run(2, lambda comm: after_epochs(comm, lambda rank, b: 3 + b * (1, 5)[rank], 12))
    assert found[0] == found[1]
    assert found[0][0] == (16, 16)
    assert found[0][-1] == found[0][-2]
    assert found[0][-1] in {(26, 6), (27, 5)}


def test_every_worker_keeps_a_sample_and_regains_its_share() -> None:
    def seconds(comm: Communicator) -> list[tuple[int, ...]]:
        steps = iter(range(10**6))
        return after_epochs(comm, lambda rank, b: b * (1 if rank or next(steps) > 10**3 else 10**6), 16)

    found = threads.run(2, seconds)[0]
    assert found[2] == (1, 31)
    assert found[-1] == (16, 16)


def test_a_rank_without_samples_is_no_worker() -> None:
    """A server among three ranks: shares are those of the two others."""

    def plan(comm: Communicator) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        share = {0: (1, 2), 1: None, 2: (0, 2)}[comm.rank]
        one = sampler(comm, 64, "auto", 8, workers=lambda epoch: share)
        found = []
        for number in range(2):
            epoch = one.epoch(number)
            found.append((epoch.lengths, epoch.batch_sizes))
            if share:
                one.record(4.0 - comm.rank, 32)
        return found

    for first, second in threads.run(3, plan):
        assert first == ((32, 0, 32), (8, 8, 8))
        assert second == ((20, 0, 44), (5, 8, 11))


def test_workers_that_do_not_step_together_keep_equal_shares_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    def plan(comm: Communicator) -> tuple[int, ...]:
        one = sampler(SingleCommunicator(), 64, "auto", 8, workers=lambda epoch: (comm.rank, comm.size))
        one.check(comm)
        for number in range(2):
            epoch = one.epoch(number)
            one.record(1.0 + comm.rank, 32)
        return epoch.batch_sizes

    assert threads.run(2, plan) == [(8,), (8,)]
    told = capsys.readouterr().err
    assert told.startswith("ddl: data.partition.weights: auto needs workers that take their steps together")
    assert told.count("\n") == 1


def test_workers_that_do_not_step_together_use_given_weights(capsys: pytest.CaptureFixture[str]) -> None:
    def plan(comm: Communicator) -> tuple[int, int, int]:
        one = sampler(SingleCommunicator(), 66, [3, 1], 8, workers=lambda epoch: (comm.rank, comm.size))
        one.check(comm)
        epoch = one.epoch(0)
        return len(epoch.indices), epoch.batch_size, epoch.steps

    assert threads.run(2, plan) == [(50, 12, 5), (16, 4, 4)]
    assert not capsys.readouterr().err


def test_shares_are_equal_after_the_loss_of_a_worker() -> None:
    living = [(2, 3)]
    one = sampler(SingleCommunicator(), 60, [4, 1, 1], 8, workers=lambda epoch: living[-1])
    one.check(SingleCommunicator())
    assert (len(one.epoch(0).indices), one.epoch(0).batch_size) == (10, 4)
    living.append((1, 2))
    assert (len(one.epoch(1).indices), one.epoch(1).batch_size) == (30, 8)


def test_ranks_with_parts_of_a_model_keep_equal_shares(capsys: pytest.CaptureFixture[str]) -> None:
    """Two copies of a model, each on two ranks: those of a copy would choose different samples."""

    def plan(comm: Communicator) -> tuple[int, ...]:
        copies = comm.split(comm.rank % 2, comm.rank)
        one = sampler(copies, 64, "auto", 8)
        one.check(comm)
        for number in range(2):
            epoch = one.epoch(number)
            one.record(1.0 + comm.rank, 32)
        return epoch.batch_sizes

    assert threads.run(4, plan) == [(8, 8)] * 4
    assert "each with the whole model; here their shares stay equal" in capsys.readouterr().err


def test_an_error_of_one_worker_is_raised_on_all_ranks() -> None:
    """Rank 1 is a server, which does not know how many workers there are."""

    def check(comm: Communicator) -> str:
        one = sampler(comm, 64, [1, 2, 3], workers=lambda epoch: None if comm.rank else (0, 1))
        with pytest.raises(UserError) as refused:
            one.check(comm)
        return str(refused.value)

    assert set(threads.run(2, check)) == {
        "data.partition.weights: 3 weights for 1 workers, expected one for each, or auto"
    }

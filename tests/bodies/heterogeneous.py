"""Bodies of tests with workers of unequal speed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config.schema import Config
from hvd_train.training import checkpoint
from hvd_train.training.loop import Trainer
from hvd_train.training.sampler import Epoch
from tests.bodies import training as body

GLOBAL_BATCH = 64
SLOWER = 4
"""The time for a sample on the last rank, divided by that on other ranks."""


def configuration(size: int, partition: Any, **train: Any) -> Config:
    data = {"batch_size": GLOBAL_BATCH // size // train.get("accumulate", 1), "partition": partition}
    return body.configuration(data=data, train=train)


def weighted(weights: Any) -> dict[str, Any]:
    return {"name": "weighted", "weights": weights}


def weighted_shares_equal_one_process(comm: Communicator) -> None:
    """Workers with batches in ratios 1 : 2 : ... take the steps of one process, in float64."""
    weights = [float(r + 1) for r in range(comm.size)]
    with body.alone(comm):
        alone = body.trained(SingleCommunicator(), configuration(1, "random", accumulate=2, epochs=2))
    job = body.trainer(comm, configuration(comm.size, weighted(weights), accumulate=2, epochs=2))
    job.run()
    body.assert_close(body.parameters(job), alone)
    sizes = job.sampler.epoch(0).batch_sizes
    assert sum(sizes) * 2 == GLOBAL_BATCH
    assert comm.size == 1 or sizes[-1] > sizes[0], sizes


class Plans:
    """Records the plan of each epoch, and the seconds that the rank computed in it."""

    def __init__(self, job: Trainer) -> None:
        self.epochs: list[Epoch] = []
        self.seconds: list[float] = []
        self._job, self._sampled = job, job.sampler.epoch
        job.sampler.epoch = self._epoch  # type: ignore[method-assign]

    def _epoch(self, number: int) -> Epoch:
        self.seconds.append(self._job.clock.computing - sum(self.seconds))
        self.epochs.append(self._sampled(number))
        return self.epochs[-1]


def _slow_down(job: Trainer, seconds: float) -> None:
    """Let the model take `seconds` for each training sample."""

    def wait(module: nn.Module, inputs: Any) -> None:
        if module.training:
            time.sleep(seconds * len(inputs[0]))

    job.model.register_forward_pre_hook(wait)


def shares_settle_where_all_take_equally_long(comm: Communicator) -> None:
    """A slow rank gets fewer samples, so that no rank waits for it, and the result is unchanged."""
    with body.alone(comm):
        alone = body.trained(SingleCommunicator(), configuration(1, "random", epochs=4))
    job = body.trainer(comm, configuration(comm.size, weighted("auto"), epochs=4))
    plans = Plans(job)
    slow = comm.rank == comm.size - 1
    _slow_down(job, 0.0005 * comm.size * (SLOWER if slow else 1))
    job.run()
    body.assert_close(body.parameters(job), alone)
    assert all(sum(epoch.batch_sizes) == GLOBAL_BATCH for epoch in plans.epochs)
    if comm.size == 1:
        return
    assert len(set(plans.epochs[0].batch_sizes)) == 1
    *others, last = plans.epochs[-1].batch_sizes
    ratio = sum(others) / len(others) / last
    assert SLOWER / 2 < ratio < SLOWER * 2, plans.epochs[-1].batch_sizes
    first, latest = (_spread(comm, plans.seconds[e]) for e in (1, 3))
    assert latest < first, (first, latest)


def _spread(comm: Communicator, seconds: float) -> float:
    """Return the longest of all ranks' seconds over the shortest."""
    of_ranks = [float(s) for s in comm.all_gather(torch.tensor([seconds], dtype=torch.float64))]
    return max(of_ranks) / min(of_ranks)


def resumed_is_bitwise_equal(comm: Communicator, folder: Path) -> None:
    """A run with unequal shares, resumed within an epoch or at its end, equals a whole run."""
    per_epoch = -(-body.SAMPLES // GLOBAL_BATCH)
    through, through_plans = _with_fixed_times(comm, 5 * per_epoch)
    through.run()
    if comm.size > 1:
        assert len({epoch.batch_sizes for epoch in through_plans.epochs[:3]}) == 3
    first, _ = _with_fixed_times(comm, 2 * per_epoch + 1, folder)
    first.run()
    for stop in (2 * per_epoch, 2 * per_epoch + 1):
        second, plans = _with_fixed_times(comm, 5 * per_epoch)
        second.restore(checkpoint.load(folder / "checkpoints" / f"step-{stop:08d}", comm, print))
        second.run()
        assert [e.batch_sizes for e in plans.epochs[-3:]] == [e.batch_sizes for e in through_plans.epochs[2:5]]
        for name, value in body.parameters(through).items():
            assert torch.equal(value, body.parameters(second)[name]), name


def _with_fixed_times(comm: Communicator, steps: int, folder: Path | None = None) -> tuple[Trainer, Plans]:
    """Return a trainer whose rank r records 1 + e r seconds a sample in epoch e, from 1."""
    config = configuration(comm.size, weighted("auto"), precision="fp32", steps=steps, epochs=None)
    job = body.trainer(comm, config, checkpoints=folder / "checkpoints" if folder else None)
    record = job.sampler.record

    def told(_: float, samples: int) -> None:
        record(samples * (1 + comm.rank * (1 + job.progress.epoch)), samples)

    job.sampler.record = told  # type: ignore[method-assign]
    return job, Plans(job)


BODIES = [weighted_shares_equal_one_process, shares_settle_where_all_take_equally_long]

"""The gradient noise scale: its estimators, and the figure of a run."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.errors import UserError
from hvd_train.monitor.base import Record, Sink
from hvd_train.training.noise import SMOOTHING, estimates
from tests.bodies import training as body
from tests.engines import threads

SIZES = (1, 3, 1)
"""Samples of the micro-batches of a step."""


def measured(samples: Tensor, sizes: tuple[int, ...]) -> tuple[float, float]:
    """Return what `estimates` takes of the gradients (n, d) of samples in micro-batches of `sizes`."""
    weighted = sum(len(g) * float(g.mean(0).square().sum()) for g in samples.split(sizes)) / len(samples)
    return weighted, float(samples.mean(0).square().sum())


def test_estimates_are_unbiased_for_micro_batches_of_unequal_size() -> None:
    """The mean over all draws of a small population is exact."""
    population = torch.tensor([[1.0, 0.5], [-2.0, 3.0], [0.25, -1.0]], dtype=torch.float64)
    draws = [population[list(draw)] for draw in itertools.product(range(3), repeat=sum(SIZES))]
    found = torch.tensor(
        [estimates(*measured(draw, SIZES), len(SIZES), sum(SIZES)) for draw in draws], dtype=torch.float64
    ).mean(0)
    covariance = (population - population.mean(0)).square().mean(0).sum()
    torch.testing.assert_close(found, torch.stack([covariance, population.mean(0).square().sum()]))


def test_the_trace_is_the_spread_of_the_micro_batches() -> None:
    gradients = torch.randn(sum(SIZES), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = gradients.mean(0)
    spread = sum(len(g) * float((g.mean(0) - mean).square().sum()) for g in gradients.split(SIZES))
    trace, _ = estimates(*measured(gradients, SIZES), len(SIZES), sum(SIZES))
    assert trace == pytest.approx(spread / (len(SIZES) - 1))


def test_two_sizes_are_those_of_the_paper() -> None:
    """Appendix A.1: |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b), S = (|G_b|^2 - |G_B|^2) / (1/b - 1/B)."""
    small, large = 8, 24
    trace, square = estimates(5.0, 2.0, large // small, large)
    assert trace == pytest.approx((5.0 - 2.0) / (1 / small - 1 / large))
    assert square == pytest.approx((large * 2.0 - small * 5.0) / (large - small))


class Log(Sink):
    def __init__(self) -> None:
        self.records: list[Record] = []

    def train(self, record: Record) -> None:
        self.records.append(record)


def configuration(size: int, **sections: Any) -> Any:
    train = {"steps": 3, "epochs": None, "log_every": 1, "noise_scale": True, **sections.pop("train", {})}
    return body.configuration(
        train=train, optimizer={"lr": 0.0}, data={"batch_size": 6 // size, "partition": "round_robin"}, **sections
    )


@pytest.mark.parametrize(
    "sync",
    [{"shard_optimizer": False}, {"shard_optimizer": "auto"}, {"strategy": "parameter_server", "fusion_mb": None}],
)
def test_a_run_records_the_noise_scale_of_its_gradients(sync: dict[str, Any]) -> None:
    """On one rank with two micro-batches, and on two ranks with two each."""

    def run(comm: Communicator) -> tuple[list[float], list[float]]:
        log = Log()
        job = body.trainer(comm, configuration(comm.size, train={"accumulate": 2}, sync=sync), sinks=[log])
        groups = grouped(job, comm)
        job.run()
        return [record.get("noise_scale", math.nan) for record in log.records], groups

    for size in (1, 2):
        for found, wanted in threads.run(size, run):
            assert found == pytest.approx(wanted, rel=1e-9)


def grouped(job: Any, comm: Communicator) -> list[float]:
    """Return the noise scale after each step, from the plans of all ranks; the parameters do not move."""
    epoch, averages, values = job.sampler.plan(0), [0.0, 0.0], []
    for step in range(3):
        own = [_gradient(job, batch) for batch in epoch.micro_batches(step)]
        sizes = [len(batch) for batch in epoch.micro_batches(step)]
        every = torch.cat(comm.all_gather(torch.stack(own)))
        every_size = torch.cat(comm.all_gather(torch.tensor(sizes))).double()
        units = float(every_size.sum())
        weighted = float((every_size * every.square().sum(1)).sum()) / units
        mean = (every_size[:, None] * every).sum(0) / units
        found = estimates(weighted, float(mean.square().sum()), len(every), units)
        averages = [SMOOTHING * a + (1 - SMOOTHING) * f for a, f in zip(averages, found, strict=True)]
        values.append(averages[0] / averages[1] if averages[1] > 0 else math.nan)
    job.model.zero_grad(set_to_none=True)
    return values


def _gradient(job: Any, indices: Tensor) -> Tensor:
    x, y = job.data.train.batch(indices)
    job.model.zero_grad()
    torch.nn.functional.cross_entropy(job.model(x.double()), y).backward()
    return torch.cat([p.grad.flatten() for p in job.model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({}, r"a step has only one; start more ranks"),
        ({"sync": {"strategy": "local_sgd"}}, r"it needs the exact mean gradient"),
        ({"sync": {"compression": "fp16"}}, r"without sync\.compression"),
        ({"sync": {"weights": "equal"}}, r"weights: samples"),
    ],
)
def test_runs_without_a_noise_scale_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"train\.noise_scale: .*" + message):
        body.trainer(SingleCommunicator(), configuration(1, **sections))

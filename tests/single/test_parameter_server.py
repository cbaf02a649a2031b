"""The parameter server on threads.

`tests/parallel/test_parameter_server.py` runs the bodies under mpirun.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config import plugins
from hvd_train.errors import Diverged, UserError
from hvd_train.gradients.compressors.none import Identity
from hvd_train.gradients.optimizer import Build
from hvd_train.sync.base import Context
from hvd_train.sync.servers.client import ServedWorkers
from hvd_train.sync.servers.roles import roles
from hvd_train.sync.strategies.parameter_server import coefficients
from hvd_train.training import checkpoint
from tests.bodies import parameter_server as served
from tests.bodies import training as body
from tests.bodies.branches import Branches, one_process, plans, three_steps
from tests.engines import threads


@pytest.mark.parametrize(
    "nodes", [[0], [0, 1], [0] * 3, [0] * 4, [0, 0, 1, 1], [0, 1, 1, 1]], ids=lambda nodes: "".join(map(str, nodes))
)
@pytest.mark.parametrize("check", served.BODIES, ids=lambda f: f.__name__)
def test_bodies_on_threads(check: Any, nodes: list[int]) -> None:
    threads.run(len(nodes), check, nodes=nodes)


def test_krum_of_parts_would_choose_otherwise() -> None:
    served.krum_of_parts_would_choose_otherwise()


@pytest.mark.parametrize(
    ("size", "servers", "placement", "line"),
    [
        (1, 1, "colocated", "rank 0 works, rank 0 also serves"),
        (4, 1, "colocated", "ranks 0-3 work, rank 0 also serves"),
        (4, 3, "colocated", "ranks 0-3 work, ranks 0-2 also serve"),
        (4, 1, "dedicated", "ranks 0-2 work, rank 3 serves"),
        (4, 2, "dedicated", "ranks 0-1 work, ranks 2-3 serve"),
        (2, 1, "dedicated", "rank 0 works, rank 1 serves"),
    ],
)
def test_roles_in_one_line(size: int, servers: int, placement: Any, line: str) -> None:
    assert str(roles(size, servers, placement)) == line


@pytest.mark.parametrize(
    ("merge", "mix", "expected"),
    [
        ("mean", 0.5, [0.25, 0.25, 0.25, 0.25]),
        ("weights", 0.5, [0.1, 0.0, 0.3, 0.6]),
        ("mixed", 0.5, [0.175, 0.125, 0.275, 0.425]),
        ("mixed", 0.0, [0.25, 0.25, 0.25, 0.25]),
        ("mixed", 1.0, [0.1, 0.0, 0.3, 0.6]),
    ],
)
def test_coefficients(merge: Any, mix: float, expected: list[float]) -> None:
    assert coefficients(merge, mix, [1, 0, 3, 6]) == pytest.approx(expected)


SPARSE = {"model": {"target": "tests.single.test_parameter_server:sparse"}}
LBFGS = {"optimizer": {"name": "LBFGS", "momentum": None, "weight_decay": None}}


def sparse() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3), nn.EmbeddingBag(3, 3, sparse=True))


@pytest.mark.parametrize(
    ("sync", "sections", "message"),
    [
        (
            {"servers": 3},
            {},
            r"3 servers and a worker need at least 3 ranks, and there are 2: start more .--np., lower",
        ),
        ({"servers": 2, "placement": "dedicated"}, {}, r"2 dedicated servers .* at least 3 .*placement: colocated"),
        ({"aggregate": "krum"}, {}, r"krum withstands 1 Byzantine worker among at least 4, and there are 2"),
        ({"aggregate": "median", "byzantine": 2}, {}, r"median withstands 2 .* at least 5"),
        ({"aggregate": "krum", "mode": "parameters"}, {}, r"sync.aggregate: krum is for gradients"),
        ({"merge": "weights"}, {}, r"sync.merge: weights is for parameters"),
        ({"mode": "parameters", "weights": [1.0, 2.0]}, {}, r"sync.weights: merge: mean counts all"),
        ({"mode": "parameters", "merge": "weights", "weights": [1.0]}, {}, r"expected 2 numbers, .* got \[1.0\]"),
        ({"mode": "parameters", "merge": "mixed", "weights": [0.0, 0.0]}, {}, r"not all zero"),
        ({"compression": "fp16"}, {}, r"sync.compression: .* leave it out, or set sync.strategy: allreduce"),
        ({"backup_workers": 1, "aggregate": "krum"}, {}, r"sync.backup_workers: only the mean of gradients"),
        ({"backup_workers": 1, "mode": "parameters"}, {}, r"sync.backup_workers: only the mean of gradients"),
        ({}, LBFGS, r"LBFGS needs all parameters at once"),
        ({}, SPARSE, r"takes no sparse gradients"),
        ({"strategy": "allreduce", "op": "adasum"}, SPARSE, r"adasum takes no sparse gradients"),
        ({"strategy": "allreduce", "op": "adasum", "compression": "fp16"}, {}, r"adasum needs gradients as they are"),
        ({"strategy": "allreduce", "op": "adasum", "shard_optimizer": True}, {}, r"adasum needs whole gradients"),
        ({"shard_optimizer": False}, {}, r"sync.shard_optimizer: unknown key"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(sync: Any, sections: Any, message: str) -> None:
    def start(comm: Communicator) -> None:
        body.trainer(comm, body.configuration(**sections, sync={"strategy": "parameter_server", **sync}))

    with pytest.raises(UserError, match=message) as refused:
        threads.run(2, start)
    assert "\n" not in str(refused.value)


def test_backup_workers_are_another_strategy() -> None:
    def start(comm: Communicator) -> type:
        return type(
            plugins.create("hvd_train.sync.strategies", "parameter_server", Context(comm, Identity()), backup_workers=1)
        )

    assert threads.run(2, start) == [ServedWorkers] * 2


def test_the_rate_is_scaled_by_workers_on_servers_too() -> None:
    def rates(comm: Communicator) -> list[float]:
        sync = {"strategy": "parameter_server", "placement": "dedicated"}
        return body.trainer(comm, body.configuration(sync=sync, schedule={"scale_by_world_size": True})).step.rates

    assert threads.run(3, rates) == [[0.2]] * 3


def test_adasum_of_three_ranks_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs 2, 4, 8, \.\.\. of them, and there are 3"):
        threads.run(3, lambda comm: body.trainer(comm, body.configuration(sync={"op": "adasum"})))


@pytest.mark.parametrize("servers_first", [True, False], ids=["then allreduce", "then servers"])
@pytest.mark.parametrize("optimizer", ["AdamW", "Adafactor"])
def test_state_moves_between_servers_and_allreduce(optimizer: str, servers_first: bool, tmp_path: Path) -> None:
    """Three of four ranks serve, so that a parameter is split; two ranks have whole optimizers."""

    def config(workers: int, steps: int, sync: dict[str, Any]) -> Any:
        return body.configuration(
            data={"batch_size": 32 // workers},
            optimizer={"name": optimizer, "lr": 0.01, "momentum": None, "weight_decay": 0.1},
            train={"steps": steps, "epochs": None},
            sync=sync,
        )

    kinds = [(4, 4, {"strategy": "parameter_server", "servers": 3}), (2, 2, {"shard_optimizer": False})]
    before, after = kinds if servers_first else kinds[::-1]

    def first(comm: Communicator) -> None:
        body.trainer(comm, config(before[1], 5, before[2]), checkpoints=tmp_path / "checkpoints").run()

    def then(comm: Communicator) -> dict[str, Tensor]:
        job = body.trainer(comm, config(after[1], 12, after[2]))
        job.restore(checkpoint.load(tmp_path, comm, print))
        job.run()
        return body.parameters(job)

    threads.run(before[0], first)
    alone = body.trained(SingleCommunicator(), config(1, 12, {"shard_optimizer": False}))
    for result in threads.run(after[0], then):
        body.assert_close(result, alone)


def test_an_overflow_on_one_worker_makes_all_servers_skip_the_step() -> None:
    def run(comm: Communicator) -> tuple[bool, float]:
        sync = {"strategy": "parameter_server", "servers": 2, "placement": "dedicated"}
        config = body.configuration(train={"precision": "fp16", "steps": 1, "epochs": None}, sync=sync)
        job = body.trainer(comm, config)
        before = body.parameters(job)
        if comm.rank == 1:
            poisoned(job.strategy, job.model, lambda g: g.fill_(float("inf")))
        job.run()
        return all(torch.equal(before[n], p) for n, p in body.parameters(job).items()), job.precision.scaler.get_scale()

    assert threads.run(4, run) == [(True, 32768.0)] * 4


def poisoned(strategy: Any, model: nn.Module, poison: Any) -> None:
    """Apply `poison` to this rank's gradients before they are pushed."""
    honest = strategy.on_gradients

    def on_gradients(step: int) -> None:
        for p in model.parameters():
            if p.grad is not None:
                poison(p.grad)
        honest(step)

    strategy.on_gradients = on_gradients


def test_one_of_four_that_sends_noise_spoils_the_mean_alone() -> None:
    """Digits, within 2 points of training without attack, under noise of 100 times a gradient."""
    config = {
        "model": {"name": "mlp", "hidden": [64], "target": None},
        "data": {"name": "digits", "target": None, "batch_size": 32},
        "optimizer": {"lr": 0.1, "momentum": 0.9, "weight_decay": None},
        "train": {"precision": "fp32", "epochs": 8, "eval_every": 10_000},
    }

    def accuracy(aggregate: str, noise: float) -> float:
        """Return the accuracy, 0 if training has diverged."""
        generator = torch.Generator().manual_seed(3)

        def run(comm: Communicator) -> float:
            sync = {"strategy": "parameter_server", "servers": 2, "aggregate": aggregate}
            job = body.trainer(comm, body.configuration(**config, sync=sync))
            if comm.rank == 1 and noise:
                poisoned(job.strategy, job.model, lambda g: g.normal_(0, noise * float(g.std()), generator=generator))
            job.run()
            return job.evaluation.metrics["accuracy"]

        try:
            return threads.run(4, run)[0]
        except Diverged:
            return 0.0

    clean = accuracy("mean", 0)
    assert clean > 0.92
    for name in ("krum", "median", "trimmed_mean"):
        assert accuracy(name, 100) > clean - 0.02, name
    assert accuracy("mean", 100) < clean - 0.3


@settings(max_examples=20, deadline=None)
@given(plans(), st.integers(1, 3), st.sampled_from(["colocated", "dedicated"]))
def test_random_models_equal_one_process(plan: dict[str, Any], servers: int, placement: str) -> None:
    """Three steps equal one process with mixed dtypes, unused branches and unfrozen layers."""
    workers, size = plan["size"], plan["size"] + servers * (placement == "dedicated")
    servers = min(servers, size)
    build = Build(plan["optimizer"], {"lr": 0.1, "weight_decay": 0.1})
    reference = one_process(plan, build, workers)

    def run(comm: Communicator) -> list[Tensor]:
        model = Branches(plan)
        strategy, made = served.stepping(comm, model, build=build, servers=servers, placement=placement)
        return three_steps(comm.rank, model, strategy, made, plan)

    for result in threads.run(size, run, nodes=plan["nodes"][:size]):
        for mine, expected in zip(result, reference.layers, strict=True):
            torch.testing.assert_close(mine, expected.detach(), rtol=1e-5, atol=1e-6)

"""The sharded optimizer on threads, on one node and several, and on random models."""

from __future__ import annotations

from itertools import pairwise
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
from hvd_train.errors import UserError
from hvd_train.gradients import zero
from hvd_train.gradients.compressors.none import Identity
from hvd_train.gradients.optimizer import Build
from hvd_train.gradients.partitioned import PartitionedOptimizer
from hvd_train.gradients.pieces import cut
from hvd_train.gradients.zero import ShardedGradients
from hvd_train.sync.base import Context
from hvd_train.training import checkpoint
from hvd_train.training.loop import Trainer
from tests.bodies import training as body
from tests.bodies.branches import Branches, one_process, plans, three_steps
from tests.engines import threads


@pytest.mark.parametrize(
    ("sizes", "owners", "whole", "multiple", "expected"),
    [
        ([10], 2, False, 1, [(0, 0, 0, 5), (0, 1, 5, 10)]),
        ([10], 2, False, 4, [(0, 0, 0, 4), (0, 1, 4, 10)]),
        ([3, 3, 6], 2, False, 1, [(0, 0, 0, 3), (1, 0, 0, 3), (2, 1, 0, 6)]),
        ([3, 3, 6], 2, True, 1, [(0, 0, 0, 3), (1, 0, 0, 3), (2, 1, 0, 6)]),
        ([9, 1], 2, True, 1, [(0, 0, 0, 9), (1, 1, 0, 1)]),
        ([1], 3, False, 1, [(0, 2, 0, 1)]),
    ],
)
def test_cut(sizes: list[int], owners: int, whole: bool, multiple: int, expected: list[tuple[int, ...]]) -> None:
    pieces = cut(sizes, owners, whole=whole, multiple=multiple)
    assert [(p.index, p.owner, p.start, p.stop) for p in pieces] == expected


@given(st.lists(st.integers(1, 300), min_size=1), st.integers(1, 9), st.booleans(), st.sampled_from([1, 8, 16]))
def test_every_element_has_one_owner(sizes: list[int], owners: int, whole: bool, multiple: int) -> None:
    pieces = cut(sizes, owners, whole=whole, multiple=multiple)
    covered = {(p.index, i) for p in pieces for i in range(p.start, p.stop)}
    assert len(covered) == sum(p.stop - p.start for p in pieces) == sum(sizes)
    assert all(a.owner <= b.owner for a, b in pairwise(pieces)), "the pieces of an owner must be contiguous"
    if not whole:
        shares = [sum(p.stop - p.start for p in pieces if p.owner == o) for o in range(owners)]
        assert max(shares) <= sum(sizes) / owners + multiple * 2


def test_optimizer_state_per_rank_is_a_quarter_at_np_4() -> None:
    def numel(comm: Communicator) -> tuple[int, int]:
        job = body.trainer(comm, _mlp())
        job.run()
        assert isinstance(job.optimizer, PartitionedOptimizer) == (comm.size > 1)
        state = job.optimizer.torch.state_dict()["state"].values()
        moments = sum(v.numel() for s in state for k, v in s.items() if k.startswith("exp"))
        return moments, sum(p.numel() for p in job.model.parameters())

    for moments, total in threads.run(4, numel):
        assert moments == pytest.approx(2 * total / 4, rel=0.05)


def _mlp(**sections: Any) -> Any:
    defaults: dict[str, Any] = {
        "model": {"name": "mlp", "hidden": [64, 32], "target": None},
        "optimizer": {"name": "AdamW", "lr": 0.01, "momentum": None},
    }
    return body.configuration(**{**defaults, **sections})


@pytest.mark.parametrize("early", [0, 1 << 30], ids=["copied by hooks", "copied together"])
@pytest.mark.parametrize(("size", "per_node"), [(4, 4), (4, 2), (4, 1), (6, 3)])
def test_gradients_are_summed_over_nodes(size: int, per_node: int, early: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero, "_EARLY", early)
    config = body.configuration(data={"batch_size": 48 // size})
    alone = body.trained(SingleCommunicator(), body.configuration(data={"batch_size": 48}))
    for result in threads.run(
        size, lambda comm: body.trained(comm, config), nodes=[r // per_node for r in range(size)]
    ):
        body.assert_close(result, alone)


@pytest.mark.parametrize("sharded", [(True, False), (False, True)], ids=["then not", "then sharded"])
@pytest.mark.parametrize("optimizer", ["AdamW", "Adafactor", "Muon"])
def test_state_moves_between_numbers_of_ranks_and_kinds_of_optimizer(
    optimizer: str, sharded: tuple[bool, bool], tmp_path: Path
) -> None:
    def config(size: int, steps: int, shard: bool) -> Any:
        return body.configuration(
            model={"target": "tests.single.test_zero:matrices"},
            data={"batch_size": 32 // size},
            optimizer={"name": optimizer, "lr": 0.01, "momentum": None, "weight_decay": 0.1},
            train={"steps": steps, "epochs": None},
            sync={"shard_optimizer": shard},
        )

    def first(comm: Communicator) -> None:
        body.trainer(comm, config(4, 5, sharded[0]), checkpoints=tmp_path / "checkpoints").run()

    def then(comm: Communicator) -> dict[str, Tensor]:
        job = body.trainer(comm, config(2, 12, sharded[1]))
        job.restore(checkpoint.load(tmp_path, comm, print))
        job.run()
        return body.parameters(job)

    threads.run(4, first)
    body.assert_close(threads.run(2, then)[0], body.trained(SingleCommunicator(), config(1, 12, False)))


def matrices() -> nn.Module:
    """Return a model of matrices only, which Muon requires."""
    return nn.Sequential(nn.Linear(6, 20, bias=False), nn.Tanh(), nn.Linear(20, 3, bias=False))


def test_state_of_a_parameter_unfrozen_later_is_restored() -> None:
    """The checkpoint holds its moments, and the resumed model starts with the parameter frozen."""

    def run(comm: Communicator) -> tuple[Tensor, Tensor]:
        build = Build("AdamW", {"lr": 0.1})
        plan = {"sizes": [5, 3], "half": [False, False], "frozen": [False, True]}
        first = _stepped(comm, Branches(plan), build, None)
        again = _stepped(comm, Branches(plan), build, first, steps=0)
        return first["layers.1"]["exp_avg"], again["layers.1"]["exp_avg"]

    for first, again in threads.run(2, run):
        assert first.abs().sum() > 0
        assert torch.equal(first, again)


def _stepped(comm: Communicator, model: Any, build: Any, state: Any, steps: int = 1) -> Any:
    strategy = plugins.create("hvd_train.sync.strategies", "allreduce", Context(comm, Identity(), 64))
    made = strategy.optimizer(model, build)
    if state:
        made.load_state(state)
    strategy.start(model)
    for step in range(steps):
        model.thaw()
        made.adopt()
        strategy.on_backward(step)
        model.loss([True, True], 1.0).backward()
        strategy.on_gradients(step)
        made.torch.step()
        strategy.on_parameters(step)
    return made.state()


@pytest.mark.parametrize("name", ["fp16", "bf16", "int8", "topk", "powersgd"])
def test_messages_between_nodes_are_compressed(name: str) -> None:
    """Two nodes of two ranks send fewer bytes and come close to the exact result."""
    config = _mlp(sync={"compression": {"name": name}, "fusion_mb": 0.01}, optimizer={"name": "SGD", "lr": 0.05})

    def run(comm: Communicator) -> tuple[dict[str, Tensor], int]:
        job = body.trainer(comm, config)
        job.run()
        return body.parameters(job), _between_nodes(job)

    exact = body.trained(SingleCommunicator(), _mlp(optimizer={"name": "SGD", "lr": 0.05}, data={"batch_size": 64}))
    results = threads.run(4, run, nodes=[0, 0, 1, 1])
    assert all(torch.equal(results[0][0][n], r[0][n]) for r in results for n in exact)
    plain = threads.run(4, _sent, nodes=[0, 0, 1, 1])
    assert results[0][1] < 0.6 * plain[0]
    distance = max(float((results[0][0][n] - exact[n]).abs().max()) for n in exact)
    assert 0 < distance < 0.3


def _sent(comm: Communicator) -> int:
    job = body.trainer(comm, _mlp(optimizer={"name": "SGD", "lr": 0.05}, sync={"fusion_mb": 0.01}))
    job.run()
    return _between_nodes(job)


def _between_nodes(job: Trainer) -> int:
    """Return the bytes that training sent, without those of each step within the node."""
    return job.accounting.bytes_sent - job.progress.step * _sharded(job)._sent


def _sharded(job: Trainer) -> ShardedGradients:
    assert isinstance(job.optimizer, PartitionedOptimizer)
    assert isinstance(job.optimizer.partition, ShardedGradients)
    return job.optimizer.partition


@pytest.mark.parametrize(
    ("sections", "size", "message"),
    [
        ({"optimizer": {"name": "LBFGS", "momentum": None, "weight_decay": None}}, 2, "needs all parameters at once"),
        ({"sync": {"compression": "fp16"}}, 2, "compression needs gradients that are sent"),
        ({}, 1, "ranks share no memory"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_one_sentence(sections: Any, size: int, message: str) -> None:
    sections["sync"] = {**sections.get("sync", {}), "shard_optimizer": True}
    with pytest.raises(UserError, match=message):
        threads.run(size, lambda comm: body.trainer(comm, body.configuration(**sections)))


def test_an_overflow_on_one_owner_makes_all_skip_the_step() -> None:
    def run(comm: Communicator) -> tuple[bool, float]:
        config = body.configuration(train={"precision": "fp16", "steps": 1, "epochs": None})
        job = body.trainer(comm, config)
        before = body.parameters(job)
        owner = _sharded(job)
        if comm.rank == 1:
            plain = owner.reduce

            def poisoned() -> None:
                plain()
                next(o.shard.grad for o in owner.owned if o.shard.grad is not None).fill_(float("inf"))

            owner.reduce = poisoned  # type: ignore[method-assign]
        job.run()
        return all(torch.equal(before[n], p) for n, p in body.parameters(job).items()), job.precision.scaler.get_scale()

    assert threads.run(2, run) == [(True, 32768.0)] * 2


@settings(max_examples=30, deadline=None)
@given(plans())
def test_random_models_equal_one_process(plan: dict[str, Any]) -> None:
    """Three steps of ranks with own branches equal those of one process on the summed losses.

    All frozen parameters are unfrozen before one of the steps, or never.
    """
    size, build = plan["size"], Build(plan["optimizer"], {"lr": 0.1, "weight_decay": 0.1})
    reference = one_process(plan, build, size)

    def run(comm: Communicator) -> list[Tensor]:
        model = Branches(plan)
        context = Context(comm, plugins.create("hvd_train.gradients.compressors", "none"), plan["fusion"])
        strategy = plugins.create(
            "hvd_train.sync.strategies", "allreduce", context, shard_optimizer=plan["sharded"] and "auto"
        )
        made = strategy.optimizer(model, build)
        strategy.start(model)
        return three_steps(comm.rank, model, strategy, made, plan)

    for result in threads.run(size, run, nodes=plan["nodes"][:size]):
        for mine, expected in zip(result, reference.layers, strict=True):
            torch.testing.assert_close(mine, expected.detach(), rtol=1e-5, atol=1e-6)

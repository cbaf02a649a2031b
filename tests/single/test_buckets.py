"""Buckets of gradients: how they are planned, when they are reduced, and what they return."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hvd_train.comm.communicator import Communicator, Work
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.comm.ops import Op
from hvd_train.config import plugins
from hvd_train.gradients import buckets
from hvd_train.gradients.buckets import GradientBuckets, plan
from hvd_train.sync.strategies import allreduce
from tests.bodies import training as body
from tests.engines import threads


@pytest.mark.parametrize(
    ("sizes", "kinds", "limit", "expected"),
    [
        ([1, 1, 1], "aaa", 10, [[2, 1, 0]]),
        ([1, 1, 1], "aaa", 2, [[2, 1], [0]]),
        ([1, 1, 1], "aaa", 0, [[2], [1], [0]]),
        ([1, 9, 1], "aaa", 2, [[2], [1], [0]]),
        ([1, 1, 1, 1], "abab", 2, [[3, 1], [2, 0]]),
        ([], "", 5, []),
    ],
)
def test_plan(sizes: list[int], kinds: str, limit: int, expected: list[list[int]]) -> None:
    assert plan(sizes, kinds, limit) == expected


@given(st.lists(st.tuples(st.integers(1, 50), st.sampled_from("ab"))), st.integers(0, 100))
def test_plan_assigns_every_tensor_once_within_the_limit(tensors: list[tuple[int, str]], limit: int) -> None:
    sizes, kinds = [s for s, _ in tensors], [k for _, k in tensors]
    planned = plan(sizes, kinds, limit)
    assert sorted(i for b in planned for i in b) == list(range(len(tensors)))
    for bucket in planned:
        assert len({kinds[i] for i in bucket}) == 1
        assert len(bucket) == 1 or sum(sizes[i] for i in bucket) <= limit
        assert bucket == sorted(bucket, reverse=True)


@pytest.mark.parametrize(
    ("latency", "per_mib", "mib"),
    [(0.0, 1.0, 1), (1e-3, 1e-2, 1), (1e-3, 1e-3, 16), (5e-4, 1e-3, 8), (1.0, 1e-3, 64), (1.0, 0.0, 64)],
)
def test_measured_size_makes_latency_a_tenth(
    latency: float, per_mib: float, mib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "_seconds", lambda comm, nbytes, device: latency + per_mib * nbytes / 2**20)
    assert buckets.measured(SingleCommunicator(), torch.device("cpu")) == mib << 20


def test_ranks_agree_on_the_measured_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(comm: Communicator, nbytes: int, device: torch.device) -> float:
        return 1e-3 * (comm.rank + 1) + 1e-3 * nbytes / 2**20

    monkeypatch.setattr(buckets, "_seconds", seconds)
    assert threads.run(3, lambda comm: buckets.measured(comm, torch.device("cpu"))) == [32 << 20] * 3


class Recording(SingleCommunicator):
    """Logs the size of every reduction when it is issued."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[object] = []

    def all_reduce_async_(self, x: torch.Tensor, op: Op = "mean") -> Work:
        self.log.append(x.numel())
        return super().all_reduce_async_(x, op)


def none() -> object:
    return plugins.create("hvd_train.gradients.compressors", "none")


def test_reduction_begins_while_backward_still_runs() -> None:
    comm, first, last = Recording(), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
    reduction = GradientBuckets([first.weight, last.weight], comm, none(), 0)  # type: ignore[arg-type]
    hidden = first(torch.ones(1, 4))
    hidden.register_hook(lambda _: comm.log.append("first layer"))
    reduction.arm()
    last(hidden).sum().backward()
    assert comm.log == [9, "first layer", 17]
    reduction.reduce()
    assert comm.log == [9, "first layer", 17]


def test_gradients_before_arm_are_not_reduced() -> None:
    comm, layer = Recording(), nn.Linear(2, 2, bias=False)
    reduction = GradientBuckets([layer.weight], comm, none(), 0)  # type: ignore[arg-type]
    layer(torch.ones(1, 2)).sum().backward()
    assert comm.log == []
    reduction.arm()
    layer(torch.ones(1, 2)).sum().backward()
    reduction.reduce()
    assert torch.equal(layer.weight.grad, torch.full((2, 2), 2.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("zero", [True, False], ids=["set_to_none", "zeroed"])
def test_sum_over_ranks_where_each_uses_other_branches(zero: bool) -> None:
    """Rank 0 uses a, rank 1 uses b, both use c, none uses d. Two steps use the same buckets."""

    def run(comm: Communicator) -> list[torch.Tensor | None]:
        parameters = [nn.Parameter(torch.ones(3)) for _ in range(4)]
        a, b, c, _ = parameters
        optimizer = torch.optim.SGD(parameters, lr=0.0)
        reduction = GradientBuckets(parameters, comm, none(), 1000)  # type: ignore[arg-type]
        for scale in (100.0, 1.0):
            optimizer.zero_grad(set_to_none=zero)
            reduction.arm()
            ((a if comm.rank == 0 else b) * 2 * scale + c * (comm.rank + 1) * scale).sum().backward()
            reduction.reduce()
        return [None if p.grad is None else p.grad.clone() for p in parameters]

    for a, b, c, d in threads.run(2, run):
        assert a is not None
        assert b is not None
        assert c is not None
        assert (a[0], b[0], c[0]) == (2.0, 2.0, 3.0)
        assert d is None


def test_mixed_dtypes_shapes_and_layouts() -> None:
    def run(comm: Communicator) -> list[torch.Tensor]:
        whole = torch.zeros(4, 6)
        parameters = [
            nn.Parameter(torch.zeros(2, 3, dtype=torch.float64)),
            nn.Parameter(whole.t()),
            nn.Parameter(torch.zeros(())),
            nn.Parameter(torch.zeros(0, 3)),
            nn.Parameter(torch.zeros(5, dtype=torch.bfloat16)),
        ]
        reduction = GradientBuckets(parameters, comm, none(), 100)  # type: ignore[arg-type]
        reduction.arm()
        sum(((p.float() * (comm.rank + 1)).sum() for p in parameters), torch.zeros(())).backward()
        reduction.reduce()
        return [p.grad for p in parameters if p.grad is not None]

    for gradients in threads.run(3, run):
        assert len(gradients) == 5
        assert all(bool((g == 6).all()) for g in gradients)


@pytest.mark.parametrize(
    ("compression", "again"), [("none", 1 << 20), ("topk", buckets.FIXED), ("int8", buckets.FIXED)]
)
def test_a_measured_size_is_saved_and_a_resumed_run_keeps_it(
    compression: str, again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size is fixed for a compressor that works per bucket, since its result depends on it."""
    sizes = iter([1 << 20, 2 << 20])
    monkeypatch.setattr(allreduce, "measured", lambda comm, device: next(sizes))
    config = body.configuration(
        sync={"fusion_mb": "auto", "compression": compression, "shard_optimizer": False},
        train={"steps": 2, "epochs": None, "precision": "fp32"},
    )
    first = body.trainer(SingleCommunicator(), config)
    first.run()
    saved = first.state.snapshot().state["fusion_bytes"]
    assert saved == again
    second = body.trainer(SingleCommunicator(), config, fusion_bytes=saved)
    second.restore(first.state.snapshot())
    second.run()
    assert second.strategy.fusion_bytes == again

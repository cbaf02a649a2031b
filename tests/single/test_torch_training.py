"""The training side of hvd_train.torch: its bodies under mpirun, and tests of one process."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from cli.launch.flavor import find_mpirun
from hvd_train.torch import functions, optimizer
from hvd_train.torch.compression import Compression
from hvd_train.torch.elastic import ElasticSampler, sampler
from hvd_train.torch.elastic.state import ObjectState
from hvd_train.torch.elastic.training import run_fn
from hvd_train.torch.exceptions import HorovodInternalError, HostsUpdatedInterrupt
from tests.integration.parts import needs
from tests.integration.test_parallel import SECONDS, SHARED_CORES, run_until_timeout

BODIES = "tests/bodies/torch_training.py"


@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize("ranks", [2])
def test_bodies(ranks: int) -> None:
    needs("mpirun")
    options = ["-x", "-q", "-p", "no:cacheprovider", "--color=no", "--timeout=60", "-o", "timeout_method=thread"]
    pytest_on_every_rank = [sys.executable, "-m", "mpi4py", "-m", "pytest", BODIES, "-p", "tests.parallel.conftest"]
    launch = [str(find_mpirun()), "--np", str(ranks), *SHARED_CORES.split(), "--mca", "osc", "^ucx"]
    code, output = run_until_timeout([*launch, *pytest_on_every_rank, *options])
    assert code == 0, output
    passed = re.search(r"(\d+) passed", output)
    assert passed, output
    assert int(passed[1]) > 50
    assert "skipped" not in output


def sampled(monkeypatch: pytest.MonkeyPatch, ranks: int, prepare: Any = None, **options: Any) -> list[list[int]]:
    """Return the indices of each rank, after `prepare` on each sampler."""
    monkeypatch.setattr(sampler, "size", lambda: ranks)
    found = []
    for rank in range(ranks):
        monkeypatch.setattr(sampler, "rank", lambda rank=rank: rank)
        one = ElasticSampler(range(10), **options)
        if prepare:
            prepare(one)
        found.append([int(i) for i in DataLoader(range(10), sampler=one, batch_size=None)])  # type: ignore[arg-type]
        assert len(found[-1]) == len(one)
    return found


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        (1, [list(range(10))]),
        (2, [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]),
        (3, [[0, 3, 6, 9], [1, 4, 7, 0], [2, 5, 8, 1]]),
        (12, [[i % 10] for i in range(12)]),
    ],
)
def test_a_sampler_deals_in_turn_and_fills_up_from_the_start(
    ranks: int, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sampled(monkeypatch, ranks, shuffle=False) == expected


def test_a_sampler_deals_what_is_left_to_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks have processed a batch of 2 each. Three ranks resume from the state."""

    def first(one: ElasticSampler) -> None:
        one.record_batch(0, 2)
        states.append(one.state_dict())

    states: list[dict[str, Any]] = []
    sampled(monkeypatch, 2, first, shuffle=False)
    assert states == [{"epoch": 0, "processed_num": 4}] * 2
    rest = sampled(monkeypatch, 3, lambda one: one.load_state_dict(states[0]), shuffle=False)
    assert rest == [[4, 7], [5, 8], [6, 9]]


def test_a_sampler_with_nothing_left_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_done(one: ElasticSampler) -> None:
        one.record_batch(0, 9)
        one.reset()

    assert sampled(monkeypatch, 2, all_done) == [[], []]


def test_a_sampler_shuffles_alike_on_all_ranks_by_seed_and_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = [
        sampled(monkeypatch, 2, lambda one, e=epoch: one.set_epoch(e), seed=seed)
        for seed, epoch in ((3, 0), (2, 1), (3, 1))
    ]
    assert all(sorted(i for mine in ranks for i in mine) == list(range(10)) for ranks in orders)
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][0] != sorted(orders[0][0])


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "size", lambda: 1)


def test_one_rank_alone_steps_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    models = [nn.Linear(2, 1) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    wrapped: Any = optimizer.DistributedOptimizer(torch.optim.Adam(models[0].parameters(), lr=0.1))
    optimizers = [wrapped, torch.optim.Adam(models[1].parameters(), lr=0.1)]
    for _ in range(3):
        for model, one in zip(models, optimizers, strict=True):
            one.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            one.step()
    wrapped.synchronize()
    assert isinstance(wrapped, torch.optim.Adam)
    assert type(wrapped).__name__ == "Adam"
    assert torch.equal(models[0].weight, models[1].weight)


def test_an_optimizer_whose_constructor_wants_more_keeps_its_defaults_and_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(torch.optim.SGD):
        def __init__(self, params: Any, rate: float) -> None:
            super().__init__(params, lr=rate, momentum=0.5)

    alone(monkeypatch)
    model = nn.Linear(2, 1)
    inner = Own(model.parameters(), 0.25)
    model(torch.ones(1, 2)).sum().backward()
    inner.step()
    wrapped = optimizer.DistributedOptimizer(inner)
    wrapped.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert wrapped.param_groups[1]["lr"] == 0.25
    assert wrapped.state[model.weight]["momentum_buffer"] is inner.state[model.weight]["momentum_buffer"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gradient_predivide_factor": 2.0, "op": 1}, "gradient_predivide_factor needs op=hvd.Average"),
        ({"groups": 0}, "groups: expected a positive number"),
        ({"groups": [[1]]}, "lists of torch.Tensor"),
        ({"backward_passes_per_step": 0}, "expected 1 or more, got 0"),
        ({"named_parameters": [("w", nn.Parameter(torch.ones(1)))]}, "2 of the optimizer's parameters are not named"),
        ({"named_parameters": [1]}, "expected tuples"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "size", lambda: 2)
    with pytest.raises(ValueError, match=said):
        optimizer.DistributedOptimizer(torch.optim.SGD(nn.Linear(2, 1).parameters()), **options)


@pytest.mark.parametrize("wrong", [nn.Linear(1, 1).named_parameters(), "x", (1,)], ids=["generator", "text", "tuple"])
def test_parameters_of_the_wrong_kind(wrong: Any) -> None:
    with pytest.raises(ValueError, match="params: expected a dict"):
        functions.broadcast_parameters(wrong, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_compression(dtype: torch.dtype) -> None:
    x = torch.tensor([1, 2]).to(dtype)
    sent, context = Compression.fp16.compress(x)
    assert sent.dtype == (torch.float16 if dtype.is_floating_point else dtype)
    assert Compression.fp16.decompress(sent, context).dtype == dtype
    assert Compression.none.compress(x)[0] is x


def test_the_loop_of_run() -> None:
    """Restore, sync and reset after an error and after both kinds of host changes."""
    ends: list[Any] = [HorovodInternalError(), HostsUpdatedInterrupt(True), HostsUpdatedInterrupt(False), None]
    done: list[str] = []

    class Noted(ObjectState):
        def restore(self) -> None:
            done.append("restore")

        def sync(self) -> None:
            done.append("sync")

        def on_reset(self) -> None:
            done.append("on_reset")

    def train(_: Any) -> str:
        done.append("train")
        end = ends.pop(0)
        if end:
            raise end
        return "end"

    assert run_fn(train, lambda: done.append("reset"))(Noted(lambda x: x, lambda: 0)) == "end"
    again = ["reset", "on_reset"]
    after = ["sync", "train", "restore", *again, "sync", "train", *again, "train", *again, "sync", "train"]
    assert done == after

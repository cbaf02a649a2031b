"""Optimizers: imports, steps, and clipping of parts."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from hvd_train.comm.communicator import Communicator
from hvd_train.config import plugins
from hvd_train.errors import UserError
from hvd_train.gradients.compressors.none import Identity
from hvd_train.gradients.optimizer import Build, ModelOptimizer, clip, entries, without_compiler
from hvd_train.gradients.sparse import SparseSum
from hvd_train.sync.base import Context
from tests.bodies import training as body
from tests.engines import threads

STARTS = """
import sys
from hvd_train.comm.engines.single import SingleCommunicator
from tests.bodies import training
config = training.configuration(data={"name": "digits", "target": None}, model={"name": "mlp", "target": None})
job = training.trainer(SingleCommunicator(), config)
job.run()
job.restore(job.state.snapshot())
print(*(name for name in ("torch._dynamo", "sympy", "sklearn", "scipy") if name in sys.modules))
"""


def test_a_run_imports_nothing_that_takes_seconds() -> None:
    ended = subprocess.run([sys.executable, "-c", STARTS], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout.split()) == (0, []), ended.stderr


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adafactor", "LBFGS", "Rprop"])
def test_steps_equal_those_of_torch(name: str) -> None:
    after = []
    for make in (without_compiler, lambda build: build()):
        torch.manual_seed(0)
        model, x = nn.Linear(3, 2), torch.randn(8, 3)
        optimizer = make(partial(getattr(torch.optim, name), model.parameters(), lr=0.1))

        def closure(model: nn.Module = model, x: torch.Tensor = x, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(x).square().sum()
            loss.backward()
            return loss

        losses = [optimizer.step(closure).item() for _ in range(3)]
        after.append([*losses, *model.weight.flatten().tolist()])
    assert after[0] == after[1]
    assert after[0][0] > after[0][2]


def test_a_differentiable_step_stays_differentiable() -> None:
    weight = torch.ones(3, requires_grad=True)
    w = weight.clone()
    optimizer = without_compiler(partial(torch.optim.SGD, [w], lr=0.1, differentiable=True))
    w.grad = 2 * weight
    optimizer.step()
    w.sum().backward()
    torch.testing.assert_close(weight.grad, torch.full((3,), 0.8))


@pytest.mark.parametrize("bad", [1.0, float("nan"), float("inf")])
def test_parts_are_clipped_as_torch_clips_the_whole(bad: float) -> None:
    torch.manual_seed(0)
    whole = nn.Linear(4, 3)
    for p in whole.parameters():
        p.grad = torch.randn_like(p)
    whole.weight.grad[1, 2] = bad
    parts = [p.grad.clone() for p in whole.parameters()]
    square = torch.stack([g.square().sum().double() for g in parts]).sum()
    nn.utils.clip_grad_norm_(whole.parameters(), 0.5)
    for part, p in zip(parts, whole.parameters(), strict=True):
        clip([part], square, 0.5)
        torch.testing.assert_close(part, p.grad, equal_nan=True)


@pytest.mark.parametrize("sync", [{}, {"shard_optimizer": False}, {"strategy": "local_sgd"}], ids=str)
def test_options_that_torch_rejects_are_refused_on_all_ranks_in_one_sentence(sync: dict[str, Any]) -> None:
    def refusal(comm: Communicator) -> str:
        config = body.configuration(optimizer={"name": "SGD", "lr": -1.0}, sync=sync)
        with pytest.raises(UserError) as refused:
            body.trainer(comm, config)
        return str(refused.value)

    expected = "optimizer: torch.optim.SGD rejects this model or these options: Invalid learning rate: -1.0"
    assert threads.run(2, refusal) == [expected] * 2


@pytest.mark.parametrize("shard", [False, "auto"])
def test_a_model_without_trained_parameters_is_refused(shard: Any) -> None:
    def refusal(comm: Communicator) -> str:
        strategy = plugins.create(
            "hvd_train.sync.strategies", "allreduce", Context(comm, Identity()), shard_optimizer=shard
        )
        with pytest.raises(UserError) as refused:
            strategy.optimizer(nn.Linear(2, 2).requires_grad_(False), Build("SGD"))
        return str(refused.value)

    expected = "model: no parameter requires a gradient; expected at least one to train"
    assert threads.run(2, refusal) == [expected] * 2


def test_state_entries_are_known_before_the_first_step() -> None:
    parameters = {"w": torch.zeros(3, 4), "b": torch.zeros(3)}
    device = torch.device("cpu")
    adam = {"step", "exp_avg", "exp_avg_sq"}
    assert entries(Build("AdamW"), parameters, device) == {"w": adam, "b": adam}
    assert entries(Build("SGD"), parameters, device) == {"w": set(), "b": set()}
    assert entries(Build("SparseAdam"), parameters, device) == {"w": adam, "b": adam}
    assert entries(Build("LBFGS"), parameters, device) is None
    assert entries(Build("AdamW"), {}, device) == {}


def _tables(sparse: bool) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList([nn.Embedding(30, 4, sparse=sparse), nn.Linear(4, 2), nn.Embedding(20, 2, sparse=sparse)])


def _loss(model: nn.ModuleList, step: int) -> torch.Tensor:
    rows = torch.randint(20, (9,), generator=torch.Generator().manual_seed(step))
    first, linear, last = model
    return (linear(first(rows)) * last(rows.flip(0))).square().sum() * 10


@pytest.mark.parametrize(
    ("name", "options", "fused"),
    [
        ("Adam", {}, True),
        ("AdamW", {"lr": 0.1, "amsgrad": True}, True),
        ("Adam", {"fused": False}, False),
        ("Adam", {"foreach": True}, None),
        ("Adam", {"differentiable": True}, None),
        ("SGD", {"lr": 0.1}, None),
    ],
)
def test_adam_is_one_kernel_on_a_cpu_unless_the_options_choose(
    name: str, options: dict[str, Any], fused: bool | None
) -> None:
    weight = nn.Parameter(torch.ones(2))
    assert Build(name, options)([weight]).defaults["fused"] is fused
    assert Build(name, options, unscaled=False)([weight]).defaults["fused"] is options.get("fused")
    for other in (torch.ones(2, device="meta"), torch.ones(2, 3).t(), torch.ones(2, dtype=torch.complex64)):
        assert not Build(name, options)([weight, nn.Parameter(other)]).defaults["fused"]


def test_the_fused_kernel_gets_gradients_in_the_order_of_their_weights() -> None:
    weights = [nn.Parameter(torch.zeros(2, 3)) for _ in range(2)]
    gradient = torch.arange(6.0).view(3, 2).t()
    for weight, fused in zip(weights, (None, False), strict=True):
        optimizer = Build("Adam", {"lr": 0.1, "eps": 1.0, "fused": fused})([weight])
        weight.grad = gradient
        optimizer.step()
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_sparse_gradients_update_the_rows_of_a_step_as_sparse_adam_does(name: str) -> None:
    """The dense rest is updated as by Adam."""
    ours, torchs = _tables(sparse=True).double(), _tables(sparse=True).double()
    optimizer = ModelOptimizer(ours, Build(name, {"lr": 0.1, "weight_decay": 0.0, "eps": 1e-12}))
    tables = [torchs[0].weight, torchs[2].weight]
    others = [
        torch.optim.SparseAdam(tables, lr=0.1, eps=1e-12),
        torch.optim.Adam(torchs[1].parameters(), lr=0.1, eps=1e-12),
    ]
    for step in range(5):
        for model in (ours, torchs):
            model.zero_grad()
            _loss(model, step).backward()
        for one in (optimizer.torch, *others):
            one.step()
    for found, expected in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_weights_of_the_rows_of_a_step_decay(name: str) -> None:
    """If every step has every row, sparse and dense gradients give the same weights."""
    of_layout = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Embedding(6, 3, sparse=sparse)
        optimizer = ModelOptimizer(model, Build(name, {"lr": 0.1, "weight_decay": 0.3})).torch
        for _ in range(4):
            model.zero_grad()
            model(torch.tensor([*range(6), 2])).square().sum().backward()
            optimizer.step()
        of_layout.append(model.weight)
    torch.testing.assert_close(*of_layout)


def test_sparse_gradients_are_clipped_as_dense_ones() -> None:
    of_layout = []
    for sparse in (False, True):
        model = _tables(sparse)
        optimizer = ModelOptimizer(model, Build("SGD", {"lr": 1.0}))
        _loss(model, 0).backward()
        optimizer.clip(0.5)
        assert math.sqrt(optimizer.square()) == pytest.approx(0.5, rel=1e-4)
        optimizer.torch.step()
        of_layout.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*of_layout)


def test_ranks_sum_sparse_gradients_of_several_dtypes_and_shapes() -> None:
    shapes = {torch.float32: (9, 3), torch.float64: (5,), torch.complex128: (40, 2, 2), torch.bfloat16: (7, 1)}

    def run(comm: Communicator) -> list[torch.Tensor | None]:
        generator = torch.Generator().manual_seed(comm.rank)
        parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for dtype, shape in shapes.items()]
        for p in parameters[: 4 - comm.rank]:
            rows = torch.randint(len(p), (6,), generator=generator)
            values = torch.randint(5, (6, *p.shape[1:]), generator=generator).to(p.dtype)
            p.grad = torch.sparse_coo_tensor(rows[None], values, p.shape, check_invariants=True)
        dense = [None if p.grad is None else p.grad.to_dense() for p in parameters]
        SparseSum([*parameters, nn.Parameter(torch.zeros(3, 3))], comm).reduce()
        return [dense, [None if p.grad is None else p.grad.to_dense() for p in parameters]]  # type: ignore[list-item]

    of_ranks = threads.run(3, run)
    for number in range(len(shapes)):
        parts = [dense[number] for dense, _ in of_ranks if dense[number] is not None]
        for _, found in of_ranks:
            assert torch.equal(found[number], sum(parts[1:], start=parts[0]))


def test_optimizers_that_take_no_sparse_gradients_are_refused_with_the_way_out() -> None:
    for name, options, message in (
        (
            "RMSprop",
            {},
            r"RMSprop cannot train '0.weight', whose gradients are sparse .*; take Adam, AdamW, Adagrad or SGD",
        ),
        ("Adam", {"amsgrad": True}, r"amsgrad takes no sparse gradients"),
        (
            "SparseAdam",
            {},
            r"SparseAdam cannot train '1.weight', .* take Adam, which treats sparse gradients as SparseAdam",
        ),
    ):
        with pytest.raises(UserError, match=message):
            ModelOptimizer(_tables(sparse=True), Build(name, options))

"""Models with unusual state, on threads: each trains and resumes, or is refused with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.errors import UserError
from hvd_train.gradients.optimizer import Build, ModelOptimizer
from hvd_train.models import batch_norm
from hvd_train.state import model_state
from tests.bodies import odd_models as odd
from tests.bodies import training as body
from tests.engines import threads

FEATURES = [name for name in odd.FEATURES if name != "dropout"]
"""Threads share one generator, so that dropout is compared under mpirun only."""


@pytest.mark.parametrize("feature", FEATURES)
def test_each_resumes_bitwise(feature: str, tmp_path: Path) -> None:
    for number, sync in enumerate(odd.SYNCHRONOUS.values()):
        folder = tmp_path / str(number)
        threads.run(2, lambda comm, s=sync, f=folder: odd.is_resumed_bitwise(comm, [feature], s, f))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    features=odd.combinations(FEATURES), sync=st.sampled_from(list(odd.SYNCHRONOUS.values())), size=st.integers(1, 3)
)
def test_several_resume_bitwise(
    features: list[str], sync: dict[str, Any], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    size = max(size, 2) if sync.get("servers") else size
    threads.run(size, lambda comm: odd.is_resumed_bitwise(comm, features, sync, folder))


@pytest.mark.parametrize("feature", sorted(odd.ALIKE))
def test_ranks_equal_one_process(feature: str) -> None:
    threads.run(2, lambda comm: odd.equals_one_process(comm, [feature]), nodes=[0, 1])
    threads.run(4, lambda comm: odd.equals_one_process(comm, [feature]))


@pytest.mark.parametrize("sync", odd.ASYNCHRONOUS)
def test_they_train_where_nobody_waits(sync: str, tmp_path: Path) -> None:
    def run(comm: Any) -> dict[str, float]:
        job = body.trainer(comm, odd.configuration(FEATURES, odd.ASYNCHRONOUS[sync]), checkpoints=tmp_path / "c")
        job.run()
        return job.evaluation.metrics

    assert "loss" in threads.run(2, run)[0]


class Holds(nn.Module):
    """A network with the state that `add` adds."""

    def __init__(self, add: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)
        add(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Opaque(nn.Module):
    def get_extra_state(self) -> Any:
        return {"when": [object()]}

    def set_extra_state(self, state: Any) -> None: ...


def shares(module: nn.Module) -> None:
    module.view = nn.Parameter(module.inner.weight.data[1:])


def meta(module: nn.Module) -> None:
    module.away = nn.Parameter(torch.empty(3, device="meta"))


def expanded(module: nn.Module) -> None:
    module.wide = nn.Parameter(torch.zeros(1).expand(4))


def sparse(module: nn.Module) -> None:
    module.rows = nn.Parameter(torch.eye(3).to_sparse())


def quantized(module: nn.Module) -> None:
    module.register_buffer("q", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))


def unreached(module: nn.Module) -> None:
    module.branch = nn.LazyLinear(3)


def embedding(module: nn.Module) -> None:
    module.rows = nn.Embedding(5, 6, sparse=True)


def imaginary(module: nn.Module) -> None:
    module.w = nn.Parameter(torch.ones(3, 2, dtype=torch.complex64))


REFUSED: dict[str, tuple[Callable[[nn.Module], object], dict[str, Any], str]] = {
    "extra state without a form": (
        lambda m: m.add_module("own", Opaque()),
        {},
        "model: 'own._extra_state' cannot be saved: what its get_extra_state() returns holds a object; expected tensors, arrays,",
    ),
    "a quantized buffer": (
        quantized,
        {},
        "model: 'q' cannot be saved: the buffer holds a quantized tensor; expected tensors,",
    ),
    "a sparse parameter": (
        sparse,
        {},
        "model: parameter 'rows' is a tensor of layout sparse_coo, expected a dense tensor",
    ),
    "a parameter without values": (meta, {}, "model: parameter 'away' has no values (it is on torch's meta device)"),
    "an expanded parameter": (expanded, {}, "model: elements of parameter 'wide' share memory (it was expanded)"),
    "two parameters in one place": (shares, {}, "model: 'inner.weight' and 'view' lie in the same memory"),
    "a lazy module out of reach": (unreached, {}, "model: 'branch.weight' has no shape yet, since no sample reaches"),
    "sparse gradients and RMSprop": (
        embedding,
        {"optimizer": {"name": "RMSprop", "lr": 0.1}},
        "optimizer.name: RMSprop cannot train 'rows.weight', whose gradients are sparse",
    ),
    "complex numbers and Adafactor": (
        imaginary,
        {"optimizer": {"name": "Adafactor"}},
        "optimizer.name: Adafactor cannot train 'w', whose gradients are complex128 of 2 dimensions",
    ),
    "complex numbers and fp16": (
        imaginary,
        {"train": {"precision": "fp16"}},
        "train.precision: 'w' is complex, and torch cannot",
    ),
}
MAKE: list[Callable[[nn.Module], object]] = []


def holding() -> nn.Module:
    return Holds(MAKE[-1])


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_by_name(case: str, size: int) -> None:
    add, sections, text = REFUSED[case]
    MAKE.append(add)
    whole = {"optimizer": {"name": "AdamW", "lr": 0.01}, **sections}
    whole["optimizer"] = {"momentum": None, "weight_decay": None, **whole["optimizer"]}
    config = body.configuration(model={"target": "tests.single.test_odd_models:holding"}, **whole)

    def told(comm: Any) -> str:
        with pytest.raises(UserError) as refused:
            body.trainer(comm, config)
        comm.barrier()
        return str(refused.value)

    for found in threads.run(size, told, timeout=20) if size > 1 else [told(SingleCommunicator())]:
        assert found.startswith(text), found
        assert "; " in found, "and the way out"


@pytest.mark.parametrize(
    ("layer", "samples", "batch_size", "better"),
    [
        (nn.BatchNorm1d(6), 65, 16, 15),
        (nn.BatchNorm1d(6), 3, 1, 3),
        (nn.Sequential(nn.Unflatten(1, (6, 1)), nn.BatchNorm1d(6), nn.Flatten()), 33, 32, 31),
        (nn.BatchNorm1d(6, track_running_stats=False), 17, 8, 7),
        (nn.BatchNorm1d(6), 64, 16, None),
        (nn.Sequential(nn.Unflatten(1, (2, 3)), nn.BatchNorm1d(2), nn.Flatten()), 65, 16, None),
        (nn.LayerNorm(6), 65, 16, None),
        (nn.BatchNorm1d(6), 0, 16, None),
    ],
)
def test_a_batch_of_one_before_batch_norm(layer: nn.Module, samples: int, batch_size: int, better: int | None) -> None:
    model = nn.Sequential(nn.Linear(6, 6), layer)
    if better is None:
        batch_norm.check(model, lambda m: m(torch.ones(1, 6)), samples, batch_size)
        return
    with pytest.raises(
        UserError, match=rf"\(BatchNorm1d\) needs at least two in training; take data.batch_size: {better},"
    ):
        batch_norm.check(model, lambda m: m(torch.ones(1, 6)), samples, batch_size)
    assert samples % better != 1
    model.train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.ones(1, 6))


def test_every_rank_refuses_a_batch_of_one_that_one_of_them_has() -> None:
    """Two ranks have 102 and 101 of 203 samples: the last batch of the second has one sample."""
    config = odd.configuration(["batch norm"], {})
    config.data.batch_size = 25

    def told(comm: Any) -> str:
        with pytest.raises(UserError) as refused:
            body.trainer(comm, config)
        return str(refused.value)

    first, second = threads.run(2, told, timeout=20)
    assert first == second
    assert first.startswith("data.batch_size: with 25 of 101 samples a rank's last batch has one sample")
    assert "(rank 1 on " in first


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.zeros(3, 4), False),
        (torch.zeros(3, 4).t(), False),
        (torch.zeros(12)[::3], False),
        (torch.zeros(1).expand(3), True),
        (torch.zeros(1).expand(1), False),
        (torch.zeros(5).unfold(0, 3, 1), True),
        (torch.zeros(6).unfold(0, 3, 3), False),
        (torch.zeros(0, 3), False),
        (torch.tensor(1.0), False),
    ],
)
def test_which_tensors_overlap_themselves(x: torch.Tensor, expected: bool) -> None:
    assert model_state.overlaps_itself(x) is expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_converting_keeps_complex_numbers_ties_and_views(dtype: torch.dtype) -> None:
    model = nn.Sequential(*(odd.FEATURES[name]() for name in ("complex parameter", "tied", "dtypes", "layouts")))
    model_state.convert_(model, torch.device("cpu"), dtype)
    kinds = {name: t.dtype for name, t in model_state.tensors(model)}
    assert kinds["0.w"] == {torch.float32: torch.complex64, torch.float64: torch.complex128}[dtype]
    assert bool((model[0].w.imag.diagonal() == torch.tensor(0.3, dtype=torch.float32)).all())
    model[1].mean.fill_(5)
    assert bool((model[1].again == 5).all())
    model[1].frozen.data.fill_(7)
    assert bool((model[1].view == 7).all())
    assert kinds["2.eighth"] == torch.float8_e4m3fn
    assert kinds["2.mask"] == torch.bool
    assert kinds["2.latest"] == dtype
    assert not model_state.overlaps_itself(model[3].expanded)


def test_the_trial_step_leaves_no_trace() -> None:
    model = nn.Linear(3, 2)
    made = ModelOptimizer(model, Build("AdamW"))
    assert made.torch.state == {}
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("sync", ["allreduce", "parameter_server"])
def test_a_forward_pass_that_changes_parameters_is_refused_where_ranks_have_them_alike(sync: str) -> None:
    add = lambda m: m.add_module("rows", nn.Embedding(5, 6, max_norm=1.0))  # noqa: E731
    MAKE.append(add)
    config = body.configuration(model={"target": "tests.single.test_odd_models:holding"}, sync={"strategy": sync})

    def told(comm: Any) -> str:
        with pytest.raises(UserError) as refused:
            body.trainer(comm, config)
        return str(refused.value)

    assert all("'rows' has max_norm" in text for text in threads.run(2, told, timeout=20))
    body.trainer(SingleCommunicator(), body.configuration(model={"target": "tests.single.test_odd_models:holding"}))


def test_a_layer_that_only_torch_distributed_synchronises_is_refused() -> None:
    with pytest.raises(UserError, match=r"'1' is torch's SyncBatchNorm, which only torch\.distributed synchronises"):
        model_state.check_alone(nn.Sequential(nn.Linear(2, 2), nn.SyncBatchNorm(2)))

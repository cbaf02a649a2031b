"""Models with unusual state, and bodies that train, save and resume them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hvd_train.comm.communicator import Communicator
from hvd_train.config.schema import Config
from hvd_train.state import model_state
from hvd_train.training import checkpoint
from hvd_train.training.loop import Trainer
from tests.bodies import training as body

WIDTH = 6


class ComplexParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.eye(WIDTH, dtype=torch.complex64) * (0.8 + 0.3j))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.w.dtype) @ self.w).real.to(x.dtype)


class ComplexBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("phase", torch.full((WIDTH,), 1 + 0.5j))
        self.register_buffer("wide", torch.full((2,), 2 - 1j, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.phase).real.to(x.dtype) + self.wide.imag.sum().to(x.dtype)


class Layouts(nn.Module):
    """Has buffers of transposed, strided and expanded memory, and a transposed parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("transposed", torch.arange(12.0).view(3, 4).t() / 12)
        self.register_buffer("strided", torch.arange(2.0 * WIDTH)[::2] / WIDTH)
        self.register_buffer("expanded", torch.full((1,), 0.5).expand(WIDTH))
        self.w = nn.Parameter((torch.eye(WIDTH) + torch.ones(WIDTH, WIDTH).triu() / 9).t())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w * self.expanded + self.strided + self.transposed.sum()


class Dtypes(nn.Module):
    """Has buffers of unusual dtypes, a counter, a frozen half, and an empty parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([True, False] * (WIDTH // 2)))
        self.register_buffer("bytes", torch.arange(3, dtype=torch.uint8))
        self.register_buffer("shorts", torch.arange(3).to(torch.uint16))
        self.register_buffer("eighth", torch.ones(3).to(torch.float8_e4m3fn))
        self.register_buffer("batches", torch.tensor(0))
        self.register_buffer("latest", torch.zeros((), dtype=torch.float64))
        self.fixed = nn.Parameter(torch.ones(WIDTH, dtype=torch.float16), requires_grad=False)
        self.number = nn.Parameter(torch.tensor(0.9))
        self.nothing = nn.Parameter(torch.empty(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.batches += 1
            self.latest.copy_(x.detach().mean())
        return x * self.number * self.fixed.to(x.dtype) + self.mask.to(x.dtype) + self.nothing.sum()


class ExtraState(nn.Module):
    """Has state that is not a tensor, and that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Any, Any] = {"samples": 0, "shape": (WIDTH, None), 7: [b"\0a", torch.ones(2)]}

    def get_extra_state(self) -> Any:
        return self.seen

    def set_extra_state(self, state: Any) -> None:
        self.seen = state

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen = {**self.seen, "samples": self.seen["samples"] + len(x)}
        return x + self.seen["samples"] / 1000


class TensorState(nn.Module):
    """Has extra state that is a new tensor at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        self.calls = int(state)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x * (1 + self.calls / 1000)


class Growing(nn.Module):
    """Has a buffer that training creates, and one that grows with this rank's samples."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("made", None)
        self.register_buffer("queue", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.made = x.detach().mean(0)
            self.queue = torch.cat([self.queue, x.detach()[1:, 0]])[-50:]
        return x + self.queue.sum() / 100


class Unsaved(nn.Module):
    """Has buffers outside of `state_dict`, and a sparse one in it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((WIDTH,), 0.7), persistent=False)
        self.register_buffer("neighbours", torch.eye(WIDTH).roll(1, 0).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + torch.sparse.mm(self.neighbours.to(x.dtype), x.t()).t()


class Tied(nn.Module):
    """Has a Parameter and a buffer under two names each, and a buffer that views a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(WIDTH, WIDTH, bias=bias) for bias in (True, False))
        self.second.weight = self.first.weight
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("again", self.mean)
        self.frozen = nn.Parameter(torch.ones(WIDTH), requires_grad=False)
        self.register_buffer("view", self.frozen.data[:3])

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return self.second(torch.tanh(self.first(x))) - self.again + self.view.sum() * self.frozen


def sparse_rows() -> nn.Module:
    return nn.Sequential(_Bins(), nn.Embedding(10, WIDTH, sparse=True))


class _Bins(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.detach().abs().sum(1) * 3).long() % 10


FEATURES: dict[str, Any] = {
    "complex parameter": ComplexParameter,
    "complex buffers": ComplexBuffers,
    "layouts": Layouts,
    "dtypes": Dtypes,
    "extra state": ExtraState,
    "tensor state": TensorState,
    "growing buffers": Growing,
    "unsaved and sparse buffers": Unsaved,
    "tied": Tied,
    "lazy": lambda: nn.LazyLinear(WIDTH),
    "lazy batch norm": nn.LazyBatchNorm1d,
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH)),
    "dropout": lambda: nn.Dropout(0.2),
}
ALIKE = set(FEATURES) - {
    "extra state", "tensor state", "growing buffers", "lazy batch norm", "batch norm", "dropout", "tied", "spectral norm",
}  # fmt: skip
"""Features with which the gradient of a sample does not depend on other samples."""

SYNCHRONOUS = {
    "allreduce": {},
    "allreduce, not sharded": {"strategy": "allreduce", "shard_optimizer": False, "fusion_mb": 0.0001},
    "parameter_server": {"strategy": "parameter_server", "servers": 2},
    "local_sgd": {"strategy": "local_sgd", "period": 2},
    "diloco": {"strategy": "diloco", "period": 2},
    "gossip": {"strategy": "gossip"},
    "federated": {"strategy": "federated"},
    "independent": {"strategy": "independent"},
}
ASYNCHRONOUS = {name: {"strategy": name} for name in ("async_ps", "ssp", "async_gossip")}


def build(features: list[str]) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *[FEATURES[name]() for name in features], nn.Linear(WIDTH, 3))


def combinations(features: Sequence[str] = tuple(FEATURES)) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(features), min_size=1, max_size=4)


def configuration(features: list[str], sync: dict[str, Any], **train: Any) -> Config:
    return body.configuration(
        model={"target": "tests.bodies.odd_models:build", "args": {"features": features}},
        optimizer={"name": "AdamW", "lr": 0.01, "momentum": None},
        data={"batch_size": 16},
        train={"epochs": None, "steps": 6, "precision": "fp32", **train},
        checkpoint={"every": 3, "keep": 9},
        sync={"fusion_mb": None, **sync},
    )


def everything(job: Trainer) -> dict[str, Any]:
    """Return the whole state of this rank's model."""
    return {**dict(model_state.tensors(job.model)), **model_state.others(job.model)}


def same(a: Any, b: Any) -> bool:
    """Return True if values are equal bitwise and of equal types."""
    if isinstance(a, Tensor):
        pair = [x.to_dense() if x.layout != torch.strided else x.detach() for x in (a, b)]
        first, second = (x.contiguous().view(-1).view(torch.uint8) for x in pair)
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(first, second)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def is_resumed_bitwise(comm: Communicator, features: list[str], sync: dict[str, Any], folder: Path) -> None:
    """Six steps equal three and three with a checkpoint between them, in all state."""
    through = body.trainer(comm, configuration(features, sync), checkpoints=folder / "checkpoints")
    through.run()
    assert "loss" in through.evaluation.metrics
    again = body.trainer(comm, configuration(features, sync))
    again.restore(checkpoint.load(folder / "checkpoints" / "step-00000003", comm, print))
    again.run()
    there, here = everything(through), everything(again)
    differing = [name for name, value in there.items() if not same(value, here[name])]
    assert not differing, (features, sync, differing)


def equals_one_process(comm: Communicator, features: list[str]) -> None:
    from hvd_train.comm.engines.single import SingleCommunicator

    def config(size: int) -> Config:
        made = configuration(features, {}, precision="fp64")
        made.data.batch_size = 64 // size
        return made

    with body.alone(comm):
        expected = body.trained(SingleCommunicator(), config(1))
    body.assert_close(body.trained(comm, config(comm.size)), expected)

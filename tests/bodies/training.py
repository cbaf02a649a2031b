"""Bodies of tests of the trainer, for every engine: functions of a communicator."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvd_train.comm.communicator import Communicator
from hvd_train.config import plugins
from hvd_train.config.document import Document
from hvd_train.config.resolve import resolve
from hvd_train.config.schema import Config
from hvd_train.data.base import Dataset, TensorSplit
from hvd_train.data.spec import DataSpec
from hvd_train.monitor.base import Record, Sink
from hvd_train.rank.assemble import Surroundings, assemble
from hvd_train.rank.build import build
from hvd_train.training.loop import Trainer

SAMPLES = 203
"""Not a multiple of any batch: the last step is smaller, and some ranks have no samples in it."""


ONE_AT_A_TIME, _ALONE = threading.Lock(), threading.Lock()
"""Threads share torch's generator, and ast.parse of Python 3.11 is not safe in threads."""


@contextmanager
def alone(comm: Communicator) -> Iterator[None]:
    """Run the block on one rank after another; collective."""
    with _ALONE:
        yield
    comm.barrier()


def classification(samples: int = SAMPLES) -> Dataset:
    """Return a small task with unequal classes, equal on every rank."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(samples + 40, 6, generator=generator)
    y = (x @ torch.randn(6, 3, generator=generator)).argmax(1)
    train, test = (TensorSplit(x[part], y[part], y[part]) for part in (slice(40, None), slice(40)))
    return Dataset(train, test, DataSpec((6,), 3, "classification"))


def target_model(inputs: int = 6, outputs: int = 3) -> nn.Module:
    """Return a model with tied weights, an unused branch and a frozen layer."""
    return Odd(inputs, outputs)


class Odd(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, inputs)
        self.again = nn.Linear(inputs, inputs, bias=False)
        self.again.weight = self.first.weight
        self.unused = nn.Linear(inputs, outputs)
        self.frozen = nn.Linear(inputs, inputs).requires_grad_(False)
        self.last = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.again(torch.tanh(self.frozen(self.first(x))))))
        return out


_RESOLVED: dict[str, Config] = {}
"""Ranks that are threads resolve equal values, which took half of their time."""


def configuration(**sections: dict[str, Any]) -> Config:
    """Return float64, SGD with momentum and weight decay on the odd model.

    `sections` override fields; None removes a field.
    """
    values: dict[str, Any] = {
        "model": {"target": "tests.bodies.training:target_model"},
        "data": {"target": "tests.bodies.training:classification", "batch_size": 16, "partition": "random"},
        "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        "train": {"epochs": 3, "precision": "fp64"},
        "sync": {"fusion_mb": 0.0002},
    }
    for name, fields in sections.items():
        merged = {**values.get(name, {}), **fields}
        values[name] = {word: value for word, value in merged.items() if value is not None}
    key = repr(values)
    with ONE_AT_A_TIME:
        if key not in _RESOLVED:
            _RESOLVED[key] = resolve(Document(values, "test"))
        return _RESOLVED[key].model_copy(deep=True)  # tests change fields


class Log(Sink):
    """Records what a run reports."""

    def __init__(self) -> None:
        self.trained: list[Record] = []
        self.evaluated: list[Record] = []

    def train(self, record: Record) -> None:
        self.trained.append(record)

    def evaluation(self, record: Record) -> None:
        self.evaluated.append(record)


def trainer(
    comm: Communicator,
    config: Config,
    **around: Any,
) -> Trainer:
    with ONE_AT_A_TIME:
        built = build(config, comm)
    comm.barrier()
    return assemble(config, comm, built, Surroundings(**around))


def parameters(trained: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trained.model.named_parameters()}


def trained(comm: Communicator, config: Config) -> dict[str, Tensor]:
    job = trainer(comm, config)
    job.run()
    return parameters(job)


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    for name, value in a.items():
        torch.testing.assert_close(
            value, b[name], rtol=tolerance, atol=tolerance * 1e-3, msg=f"parameter {name} differs"
        )


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "sgd": {},
    "adamw": {"optimizer": {"name": "AdamW", "lr": 0.01, "momentum": None, "weight_decay": 0.1}},
    "round_robin": {"data": {"partition": "round_robin"}},
    "accumulate": {"train": {"accumulate": 2}},
    "one tensor a bucket": {"sync": {"fusion_mb": 0, "shard_optimizer": False}},
    "one bucket": {"sync": {"fusion_mb": 64, "shard_optimizer": False}},
    "sharded by whole tensors": {"optimizer": {"name": "Adafactor", "momentum": None, "lr": 0.01}},
    "sharded and clipped": {"train": {"clip_norm": 0.1}, "sync": {"shard_optimizer": "auto"}},
    "clipped": {"train": {"clip_norm": 0.1}, "sync": {"shard_optimizer": False}},
    "groups": {
        "optimizer": {
            "name": "AdamW",
            "lr": 0.01,
            "momentum": None,
            "weight_decay": 0.5,
            "groups": [{"kind": "bias", "weight_decay": 0.0}, {"match": "first.*", "lr": 0.1, "amsgrad": True}],
        },
        "schedule": {"name": "linear", "warmup": 0.3},
    },
    "class weights": {"train": {"loss": {"name": "cross_entropy", "class_weights": "balanced"}}},
    "scheduled": {"schedule": {"name": "cosine", "warmup_steps": 5}},
    "lbfgs": {"optimizer": {"name": "LBFGS", "momentum": None, "weight_decay": None, "lr": 0.5, "max_iter": 3}},
}


def variant(name: str, size: int) -> Config:
    """Return the variant with a global batch of 64 for any `size`."""
    sections = {section: dict(fields) for section, fields in VARIANTS[name].items()}
    sections.setdefault("data", {})["batch_size"] = 64 // size
    if sections.get("train", {}).get("accumulate"):
        sections["data"]["batch_size"] //= 2
    return configuration(**sections)


def equals_one_process(comm: Communicator) -> None:
    """Batches of 64 / N on N ranks give equal parameters to 1e-6 in float64, in every variant."""
    from hvd_train.comm.engines.single import SingleCommunicator

    with alone(comm):
        expected = {name: trained(SingleCommunicator(), variant(name, 1)) for name in VARIANTS}
    for name in VARIANTS:
        together = trained(comm, variant(name, comm.size))
        try:
            assert_close(together, expected[name])
        except AssertionError as error:
            raise AssertionError(f"variant '{name}': {error}") from None


def half_compression_stays_close(comm: Communicator) -> None:
    """Sending fp16 and bf16 changes the result, by no more than their mantissas allow."""
    plain = trained(comm, configuration(train={"precision": "fp32"}))
    for name, tolerance in (("fp16", 0.02), ("bf16", 0.15)):
        half = trained(comm, configuration(train={"precision": "fp32"}, sync={"compression": name}))
        difference = max(float((half[k] - plain[k]).abs().max()) for k in plain)
        assert difference < tolerance, f"{name}: {difference}"
        assert comm.size == 1 or difference > 0, f"{name} changed nothing: was it used?"


def half_compression_halves_the_bytes(comm: Communicator) -> None:
    sent = {}
    for name in ("none", "fp16"):
        before = comm.bytes_sent
        trained(
            comm, configuration(train={"precision": "fp32", "steps": 8, "epochs": None}, sync={"compression": name})
        )
        sent[name] = comm.bytes_sent - before
    fixed = sum(p.numel() * 4 for p in target_model().parameters()) * 2
    assert comm.size == 1 or sent["none"] > sent["fp16"] >= sent["none"] / 2 - fixed


def every_compressor_leaves_ranks_equal(comm: Communicator) -> None:
    for name in plugins.names("hvd_train.gradients.compressors"):
        steps = {"precision": "fp32", "steps": 4, "epochs": None}
        result = trained(comm, configuration(train=steps, sync={"compression": name, "fusion_mb": 0.0005}))
        flat = torch.cat([p.flatten() for p in result.values()])
        assert all(torch.equal(flat, other) for other in comm.all_gather(flat)), name


def resumed_is_bitwise_equal(comm: Communicator, folder: Path) -> None:
    """A run with dropout and momentum, resumed after step 7, equals an uninterrupted run."""
    from hvd_train.training import checkpoint

    def config(steps: int) -> Config:
        return configuration(
            model={"name": "mlp", "hidden": [16], "dropout": 0.3, "target": None},
            train={"steps": steps, "epochs": None, "precision": "fp32", "accumulate": 2},
            checkpoint={"every": 7},
            schedule={"name": "step", "every": 4, "factor": 0.5},
            optimizer={"name": "AdamW", "lr": 0.01, "momentum": None, "weight_decay": 0.1},
        )

    through = trainer(comm, config(11))
    through.run()
    first = trainer(comm, config(7), checkpoints=folder / "checkpoints")
    first.run()
    torch.manual_seed(12345 + comm.rank)
    second = trainer(comm, config(11))
    second.restore(checkpoint.load(folder, comm, print))
    second.run()
    for name, value in parameters(through).items():
        assert torch.equal(value, parameters(second)[name]), name


BODIES = [
    equals_one_process,
    half_compression_stays_close,
    half_compression_halves_the_bytes,
    every_compressor_leaves_ranks_equal,
]

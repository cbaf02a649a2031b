"""Bodies of tests with nested batches, counted units and streams, for every engine."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.config.schema import Config
from hvd_train.data.base import Dataset
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.models.base import Layer
from hvd_train.training import checkpoint
from tests.bodies import training as body

SAMPLES = 96
"""A multiple of 1, 2, 3 and 4 ranks."""


@cache
def _numbers(seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(SAMPLES, 4, generator=generator), torch.randn(SAMPLES, 3, generator=generator)
    return a, b, ((a[:, 0] + b[:, 0]) > 0).long() + (a[:, 1] > 1).long()


def dicts() -> tuple[list[Any], list[Any]]:
    """Return samples that are dicts with a nested value, a text and an unused entry."""
    samples = [
        {"a": x, "rest": (y, [x[:2]]), "labels": int(z), "id": f"sample {i}"}
        for i, (x, y, z) in enumerate(zip(*_numbers(), strict=True))
    ]
    return samples[20:], samples[:20]


def tuples() -> tuple[list[Any], list[Any]]:
    """Return samples (a, b, class): two inputs."""
    samples = [(x, y, int(z)) for x, y, z in zip(*_numbers(), strict=True)]
    return samples[20:], samples[:20]


def tokens() -> tuple[list[Any], list[Any]]:
    """Return sequences of 7 tokens with 1 to 7 targets, very unequally many."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(5, (SAMPLES, 7), generator=generator)
    lengths = torch.arange(SAMPLES) % 7 + 1
    y = torch.where(torch.arange(7) < lengths[:, None], (x + 1) % 5, -100)
    samples = [{"tokens": a, "labels": b} for a, b in zip(x, y, strict=True)]
    return samples[20:], samples[:20]


def sequences() -> tuple[list[Any], list[Any]]:
    """Return sequences of 1 to 20 tokens, each with the next token as target, as lists."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 21, (SAMPLES,), generator=generator).tolist()
    rows = [torch.randint(5, (n + 1,), generator=generator).tolist() for n in lengths]
    samples = [{"tokens": row[:-1], "labels": row[1:]} for row in rows]
    return samples[20:], samples[:20]


class Stream(IterableDataset[Any]):
    """As many samples of `tuples` as are asked for, in order."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        a, b, z = _numbers()
        return iter([(a[i], b[i], int(z[i])) for i in range(self.samples)])


class OfDicts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 3)

    def forward(self, a: Tensor, rest: Any) -> Tensor:
        b, (c,) = rest
        out: Tensor = self.layer(torch.cat([a, b, c], 1))
        return out


class OfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.layer(torch.cat([a, b], 1))
        return out


class OfTokens(nn.Module):
    """Returns a mapping with logits, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 6), nn.Linear(6, 5)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.embed(tokens).cumsum(1)), "hidden": self.embed.weight}


class Stages(nn.Module):
    """A model whose layers pass nested values on, some of them without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(7, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self._finish(self._middle(self._begin(a, b)))

    def pipeline_layers(self) -> list[Layer]:
        return [Layer(("first",), self._begin), Layer(("second",), self._middle), Layer(("last",), self._finish)]

    def _begin(self, a: Tensor, b: Tensor) -> dict[str, Any]:
        x = torch.cat([a, b], 1)
        return {"x": self.first(x), "more": [x > 0, x[:, :6] * 1.0]}

    def _middle(self, values: dict[str, Any]) -> tuple[Tensor, Tensor]:
        signs, skip = values["more"]
        return self.second(torch.tanh(values["x"])) + skip, signs[:, :6]

    def _finish(self, values: tuple[Tensor, Tensor]) -> Tensor:
        x, signs = values
        out: Tensor = self.last(torch.where(signs, x, 0.5 * x))
        return out


def token_loss(outputs: Any, batch: Any) -> dict[str, Tensor]:
    """Return the mean over tokens in two parts."""
    loss = F.cross_entropy(outputs["logits"].flatten(0, 1), batch["labels"].flatten())
    return {"fit": loss, "size": 0.01 * outputs["hidden"].square().mean()}


token_loss.count = lambda batch: int((batch["labels"] != -100).sum())  # type: ignore[attr-defined]

HERE = "tests.bodies.nested"
CASES: dict[str, dict[str, Any]] = {
    "dicts": {
        "model": {"target": f"{HERE}:OfDicts"},
        "data": {"target": f"{HERE}:dicts"},
        "train": {"loss": "cross_entropy"},
    },
    "two inputs": {
        "model": {"target": f"{HERE}:OfTwo"},
        "data": {"target": f"{HERE}:tuples"},
        "train": {"loss": "cross_entropy"},
    },
    "tokens": {
        "model": {"target": f"{HERE}:OfTokens"},
        "data": {"target": f"{HERE}:tokens"},
        "train": {"loss": "cross_entropy"},
    },
    "padded sequences in buckets": {
        "model": {"target": f"{HERE}:OfTokens"},
        "data": {"target": f"{HERE}:sequences", "collate": "pad", "bucket": 2},
        "train": {"loss": "cross_entropy"},
    },
    "tokens, a loss of parts": {
        "model": {"target": f"{HERE}:OfTokens"},
        "data": {"target": f"{HERE}:tokens"},
        "train": {"loss": {"target": f"{HERE}:token_loss"}},
    },
}


def configuration(name: str, size: int, **train: Any) -> Config:
    """Return the case with a global batch of 24 for any `size`."""
    sections = copy.deepcopy(CASES[name])
    accumulate = train.get("accumulate", 1)
    sections["data"]["batch_size"] = 24 // (size * accumulate)
    sections["train"] |= {"epochs": 3, **train}
    return body.configuration(**sections)


def equals_one_process(comm: Communicator) -> None:
    """N ranks train as one process does, with and without several micro-batches in a step."""
    wanted = [(name, accumulate) for name in CASES for accumulate in (1, 2)]
    with body.alone(comm):
        expected = [body.trained(SingleCommunicator(), configuration(name, 1, accumulate=n)) for name, n in wanted]
    for (name, n), alone in zip(wanted, expected, strict=True):
        together = body.trained(comm, configuration(name, comm.size, accumulate=n))
        try:
            body.assert_close(together, alone, 1e-9)
        except AssertionError as error:
            raise AssertionError(f"{name}, {n} micro-batches: {error}") from None


def stages_pass_nestings(comm: Communicator) -> None:
    """A pipeline whose stages exchange nested activations trains as one process does."""
    if comm.size > 2 or not comm.outlives_ranks:
        return
    sections: dict[str, Any] = {
        "model": {"target": f"{HERE}:Stages"},
        "data": {"target": f"{HERE}:tuples", "batch_size": 12},
        "train": {"loss": "cross_entropy", "accumulate": 2},
    }
    with body.alone(comm):
        alone = body.trainer(SingleCommunicator(), body.configuration(**sections))
        alone.run()
    job = body.trainer(comm, body.configuration(**sections, parallel={"pipeline": comm.size}))
    job.run()
    body.assert_close(body.parameters(job), body.parameters(alone), 1e-9)
    for name, value in alone.evaluation.metrics.items():
        assert abs(job.evaluation.metrics[name] - value) < 1e-9, name


def stream(samples: int, batch_size: int, **train: Any) -> Config:
    return body.configuration(
        model={"target": f"{HERE}:OfTwo"},
        data={"target": f"{HERE}:Stream", "samples": samples, "batch_size": batch_size, "partition": None},
        train={"loss": "cross_entropy", "epochs": None, **train},
    )


def streams_stop_together(comm: Communicator) -> None:
    """Ranks end an epoch when one of them has no samples, count the rest, and equal one process."""
    samples = 24 * 3 + 1
    job = body.trainer(comm, stream(samples, 24 // comm.size, steps=7))
    job.run()
    assert job.progress.step == 7
    assert (job.progress.epoch, job.progress.step_in_epoch) == ((2, 1) if comm.size > 1 else (1, 3))
    dropped = sum(int(n) for n in comm.all_gather(torch.tensor([job.feeds.dropped])))
    assert dropped == (2 if comm.size > 1 else 0)
    if comm.size > 1:
        with body.alone(comm):
            alone = body.trained(SingleCommunicator(), stream(24 * 3, 24, steps=7))
        body.assert_close(body.parameters(job), alone, 1e-9)


def streams_resume(comm: Communicator, folder: Path) -> None:
    """A run that resumes in the middle of an epoch of a stream ends bitwise equal."""
    config = stream(90, 8, steps=9)
    whole = body.trainer(comm, config)
    whole.run()
    first = body.trainer(comm, stream(90, 8, steps=5), checkpoints=folder)
    first.run()
    again = body.trainer(comm, config)
    again.restore(checkpoint.load(folder.parent, comm, print))
    again.run()
    for name, value in body.parameters(whole).items():
        assert torch.equal(value, body.parameters(again)[name]), name


@dataclass(frozen=True)
class Damaged:
    """The samples of `tuples`, of which every seventh cannot be read."""

    name: str = "damaged"

    @property
    def labels(self) -> Tensor:
        return torch.full((SAMPLES,), -1)

    def __len__(self) -> int:
        return SAMPLES

    def item(self, index: int) -> Any:
        if index % 7 == 3:
            raise UserError(f"damaged[{index}]: cannot be read")
        a, b, z = _numbers()
        return a[index], b[index], int(z[index])


@dataclass(frozen=True)
class Whole(Damaged):
    """The samples of `Damaged` that can be read."""

    def __len__(self) -> int:
        return len(self._good())

    @property
    def labels(self) -> Tensor:
        return torch.full((len(self),), -1)

    def item(self, index: int) -> Any:
        return super().item(self._good()[index])

    def _good(self) -> list[int]:
        return [i for i in range(SAMPLES) if i % 7 != 3]


def damaged() -> Dataset:
    return Dataset(Damaged(), Damaged(), DataSpec((), 0, "other"))


def whole() -> Dataset:
    return Dataset(Whole(), Whole(), DataSpec((), 0, "other"))


def _of(data: str, samples: int, size: int, **more: Any) -> Config:
    section = {"target": f"{HERE}:{data}", "batch_size": samples // size, "partition": "round_robin", **more}
    train = {"loss": "cross_entropy", "epochs": 3}
    return body.configuration(model={"target": f"{HERE}:OfTwo"}, data=section, train=train)


def damaged_samples_are_left_out(comm: Communicator) -> None:
    """Steps over all samples, some of them damaged, equal steps over those that are not."""
    bad = sum(i % 7 == 3 for i in range(SAMPLES))
    job = body.trainer(comm, _of("damaged", SAMPLES, comm.size, on_error="skip"))
    job.run()
    lost = sum(int(n) for n in comm.all_gather(torch.tensor([job.step.skipped])))
    assert lost == 3 * bad
    with body.alone(comm):
        alone = body.trainer(SingleCommunicator(), _of("whole", SAMPLES - bad, 1))
        alone.run()
    body.assert_close(body.parameters(job), body.parameters(alone), 1e-9)
    assert abs(job.evaluation.metrics["loss"] - alone.evaluation.metrics["loss"]) < 1e-9


BODIES = [damaged_samples_are_left_out, equals_one_process, stages_pass_nestings, streams_stop_together]

"""Bodies of tests of divided models, which compare with one process."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.comm.objects import broadcast_json
from hvd_train.config.schema import Config
from hvd_train.data.base import Dataset, TensorSplit
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.rank.assemble import assemble
from hvd_train.rank.build import build
from hvd_train.training import checkpoint
from hvd_train.training.loop import Trainer
from tests.bodies import training as body
from tests.bodies import transformers as library

LENGTH, VOCABULARY = 6, 11


def language(samples: int = 106) -> Dataset:
    """Return sequences in which the next token follows from the last two."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(VOCABULARY, (samples, LENGTH + 1), generator=generator)
    for i in range(2, LENGTH + 1):
        tokens[:, i] = (tokens[:, i - 1] * 3 + tokens[:, i - 2]) % VOCABULARY
    x, y, labels = tokens[:, :-1], tokens[:, 1:], torch.full((samples,), -1)
    train, test = (TensorSplit(x[p], y[p], labels[p]) for p in (slice(9, None), slice(9)))
    return Dataset(train, test, DataSpec((LENGTH,), VOCABULARY, "language"))


def images(samples: int = 106) -> Dataset:
    """Return stripes whose class is their width."""
    generator = torch.Generator().manual_seed(4)
    y = torch.randint(3, (samples,), generator=generator)
    columns = torch.arange(8)[None] // (y[:, None] + 1) % 2
    x = columns[:, None, None, :] + 0.3 * torch.randn(samples, 1, 8, 8, generator=generator)
    train, test = (TensorSplit(x[p], y[p], y[p]) for p in (slice(9, None), slice(9)))
    return Dataset(train, test, DataSpec((1, 8, 8), 3, "classification"))


MODELS: dict[str, dict[str, Any]] = {
    "mlp": {
        "model": {"name": "mlp", "hidden": [8, 12, 8, 4], "activation": "tanh", "target": None},
        "train": {"loss": {"name": "cross_entropy", "class_weights": "balanced"}},
    },
    "transformer": {
        "model": {"name": "transformer", "layers": 2, "width": 8, "heads": 4, "target": None},
        "data": {"target": "tests.bodies.parallelism:language"},
    },
    "untied": {
        "model": {"name": "transformer", "layers": 3, "width": 8, "heads": 4, "tie": False, "target": None},
        "data": {"target": "tests.bodies.parallelism:language"},
    },
}
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "resnet": {
        "model": {"name": "resnet", "depth": 8, "width": 4, "target": None},
        "data": {"target": "tests.bodies.parallelism:images"},
    },
    "cnn": {
        "model": {"name": "cnn", "channels": [4, 8], "target": None},
        "data": {"target": "tests.bodies.parallelism:images"},
    },
}
LIBRARY: dict[str, dict[str, Any]] = {
    "bert": library.classifier(),
    "gpt2": library.decoder(library.GPT2),
    "llama": library.decoder(library.LLAMA),
}
"""Models of transformers; the embedding of gpt2 is its output layer, too."""
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}},
    "adamw": {"optimizer": {"name": "AdamW", "lr": 0.01, "momentum": None, "weight_decay": 0.1}},
    "clipped": {"train": {"clip_norm": 0.05}},
}


def configuration(model: str, optimizer: str, batch: int, accumulate: int, /, **sections: dict[str, Any]) -> Config:
    merged: dict[str, dict[str, Any]] = {
        "train": {"epochs": 1, "accumulate": accumulate},
        "data": {"batch_size": batch},
    }
    for part in ({**MODELS, **CONVOLUTIONS, **LIBRARY}[model], OPTIMIZERS[optimizer], sections):
        for section, fields in part.items():
            merged[section] = {**merged.get(section, {}), **fields}
    return body.configuration(**merged)


def whole(job: Trainer) -> dict[str, Tensor]:
    """Return all parameters and buffers, on every rank; collective."""
    state = job.state.snapshot().model
    names = broadcast_json(
        job.group.steps_with, {n: [list(t.shape), str(t.dtype).removeprefix("torch.")] for n, t in state.items()}
    )
    for name, (shape, dtype) in names.items():
        state.setdefault(name, torch.empty(shape, dtype=getattr(torch, dtype)))
        job.group.steps_with.broadcast_(state[name])
    return state


GLOBAL_BATCH = 48
"""The last step has 1 of 97 sequences, on one copy of the model, or 11 of 203 rows."""

Case = tuple[str, str, int, int, str, int]
"""Model, optimizer, stages, shares, schedule, micro-batches."""


def cases(size: int) -> list[Case]:
    """Return every layout of `size` ranks with each model, and the other settings in turn."""
    layouts = [(p, t) for p, t in product((1, 2, 4), repeat=2) if p * t > 1 and size % (p * t) == 0]
    chosen = []
    for number, ((p, t), model) in enumerate(product(layouts, MODELS)):
        schedule = ("1f1b", "gpipe")[number % 2]
        optimizer = list(OPTIMIZERS)[(number + number // 3) % 3]
        chosen.append((model, optimizer, p, t, schedule, (1, 2, 3, 4)[number % 4]))
    return chosen


def few(size: int) -> list[Case]:
    """Return one case for each layout."""
    every = cases(size)
    return [every[i + i // 3 % 3] for i in range(0, len(every), 3)]


def alone(comm: Communicator, model: str, optimizer: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return parameters and metrics of one process, trained once for all cases; collective."""
    with body.alone(comm):
        if (model, optimizer) not in _ALONE:
            job = body.trainer(SingleCommunicator(), configuration(model, optimizer, GLOBAL_BATCH, 1))
            job.run()
            _ALONE[model, optimizer] = job.state.snapshot().model, job.evaluation.metrics
        return _ALONE[model, optimizer]


_ALONE: dict[tuple[str, str], tuple[dict[str, Tensor], dict[str, float]]] = {}


def equals_one_process(comm: Communicator, chosen: list[Case] | None = None) -> None:
    """Parameters are equal to 1e-6 in float64, and metrics too."""
    for case in chosen or few(comm.size):
        model, optimizer, p, t, schedule, accumulate = case
        if p > 1 and not comm.outlives_ranks:
            continue
        copies = comm.size // (p * t)
        batch = GLOBAL_BATCH // (copies * accumulate)
        parallel = {"pipeline": p, "tensor": t, "schedule": schedule}
        expected, metrics = alone(comm, model, optimizer)
        job = body.trainer(comm, configuration(model, optimizer, batch, accumulate, parallel=parallel))
        job.run()
        try:
            body.assert_close(whole(job), expected)
            assert job.evaluation.metrics == pytest.approx(metrics, rel=1e-6), (job.evaluation.metrics, metrics)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from None


def convolutions_equal_one_process(comm: Communicator) -> None:
    """Two stages with running statistics; and one linear layer split after whole convolutions."""
    equals_one_process(comm, [("resnet", "sgd", 2, 1, "1f1b", 1), ("cnn", "sgd", 2, 1, "gpipe", 2)])
    equals_one_process(comm, [("cnn", "adamw", 1, 2, "1f1b", 1)])


def local_sgd_of_parts_equals_that_of_whole_models(comm: Communicator) -> None:
    """Two copies in two stages each equal two ranks with whole models."""
    sync = {"strategy": "local_sgd", "period": 2, "fusion_mb": None}
    config = configuration("transformer", "clipped", GLOBAL_BATCH // 2, 1, sync=sync)
    pair = comm.split(comm.rank // 2, comm.rank)
    with body.ONE_AT_A_TIME:
        built = build(config, pair)
    # All ranks of a process share its generator, and the other pair may still draw parameters from it.
    comm.barrier()
    expected = assemble(config, pair, built)
    expected.run()
    parallel = {"pipeline": 2, "tensor": comm.size // 4}
    job = body.trainer(
        comm, configuration("transformer", "clipped", GLOBAL_BATCH // 4, 2, sync=sync, parallel=parallel)
    )
    job.run()
    body.assert_close(whole(job), body.parameters(expected))


def parameters_are_divided(comm: Communicator) -> None:
    """Parameters that all ranks of a stage have whole are excepted."""
    wide = {"model": {"name": "mlp", "hidden": [64] * 7, "target": None}, "train": {"steps": 1, "epochs": None}}
    for p, t in product((1, 2, 4), repeat=2):
        if comm.size == p * t > 1:
            job = body.trainer(comm, body.configuration(**wide, parallel={"pipeline": p, "tensor": t}))
            job.run()
            total = sum(w.numel() for w in whole(job).values())
            mine = sum(w.numel() for w in job.model.parameters())
            state = sum(s["momentum_buffer"].numel() for s in job.optimizer.torch.state.values())
            assert mine == state
            assert mine < 1.4 * total / (p * t), (p, t, mine, total)
            together = torch.tensor(mine)
            comm.all_reduce_(together, "sum")
            assert total <= together <= 1.1 * total, (p, t, together, total)


def both(comm: Communicator) -> dict[str, int]:
    """Return the layout of all ranks in two stages, if the engine supports stages."""
    stages = 2 if comm.outlives_ranks else 1
    return {"pipeline": stages, "tensor": comm.size // stages}


def stages_are_refused_where_ranks_send_nothing_to_one_another(comm: Communicator) -> None:
    if not comm.outlives_ranks:
        with pytest.raises(UserError, match=r"parallel.pipeline.*--engine mpi"):
            body.trainer(comm, configuration("mlp", "sgd", 8, 1, parallel={"pipeline": comm.size}))


def half_precision_stays_close(comm: Communicator) -> None:
    """Under autocast, with loss scaling for fp16, results equal one process up to rounding."""
    for precision, tolerance in (("fp16", 0.01), ("bf16", 0.05)):
        sections = {"train": {"precision": precision, "steps": 4, "epochs": None}}
        with body.alone(comm):
            one = body.trainer(SingleCommunicator(), configuration("transformer", "sgd", GLOBAL_BATCH, 1, **sections))
            one.run()
        parallel = both(comm)
        job = body.trainer(
            comm, configuration("transformer", "sgd", GLOBAL_BATCH // 2, 2, **sections, parallel=parallel)
        )
        job.run()
        for name, value in whole(job).items():
            assert (value - one.state.snapshot().model[name]).abs().max() < tolerance, (precision, name)


def an_overflow_anywhere_skips_the_step_everywhere(comm: Communicator) -> None:
    """The gradients of one rank overflow, and the other ranks skip the step too."""
    sections = {"train": {"precision": "fp16", "steps": 1, "epochs": None}}
    job = body.trainer(comm, configuration("transformer", "sgd", GLOBAL_BATCH, 1, **sections, parallel=both(comm)))
    if comm.rank == comm.size - 1:
        next(job.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    before = body.parameters(job)
    job.run()
    assert all(torch.equal(before[name], p) for name, p in body.parameters(job).items())
    assert job.precision.scaler.get_scale() == 2.0**15


def resumes_in_any_layout(comm: Communicator, folder: Path) -> None:
    """One step in each of several layouts equals as many steps of one process."""
    alone = SingleCommunicator()
    layouts = [(2, 1), (1, 2), (comm.size // 2, 2), (1, 1), (comm.size, 1)]
    worlds = [(alone, 1, 1), *((comm, p, t) for p, t in layouts if p == 1 or comm.outlives_ranks), (alone, 1, 1)]
    for step, (world, p, t) in enumerate(worlds, 1):
        if world is comm or comm.rank == 0:
            config = saving(step, GLOBAL_BATCH * p * t // world.size, parallel={"pipeline": p, "tensor": t})
            job = body.trainer(world, config, checkpoints=folder / "checkpoints")
            if step > 1:
                job.restore(checkpoint.load(folder, world, print))
            job.run()
            assert job.progress.step == step
        comm.barrier()
    if comm.rank == 0:
        through = body.trainer(alone, saving(len(worlds), GLOBAL_BATCH))
        through.run()
        body.assert_close(body.parameters(job), body.parameters(through))


def saving(steps: int, batch: int, **sections: dict[str, Any]) -> Config:
    """Return a tied transformer that takes `steps` steps and saves each."""
    fields = {"train": {"steps": steps, "epochs": None}, "checkpoint": {"every": 1}, **sections}
    return configuration("transformer", "adamw", batch, 1, **fields)


def noisy(steps: int, parallel: dict[str, int]) -> Config:
    model = {"dropout": 0.3}
    length = {"steps": steps, "epochs": None, "precision": "fp32"}
    return configuration(
        "transformer", "adamw", 8, 2, model=model, train=length, parallel=parallel, checkpoint={"every": 3}
    )


def resumes_to_the_bit(comm: Communicator, folder: Path) -> None:
    """A run with dropout, resumed after step 3, equals an uninterrupted run."""
    parallel = both(comm)
    through = body.trainer(comm, noisy(5, parallel))
    through.run()
    body.trainer(comm, noisy(3, parallel), checkpoints=folder / "checkpoints").run()
    second = body.trainer(comm, noisy(5, parallel))
    second.restore(checkpoint.load(folder, comm, print))
    second.run()
    for name, value in body.parameters(through).items():
        assert torch.equal(value, body.parameters(second)[name]), name


def dropout_of_whole_activations_is_equal(comm: Communicator) -> None:
    """Whole parameters, and outputs, stay bitwise equal on the ranks of a stage."""
    job = body.trainer(comm, noisy(4, {"tensor": comm.size}))
    job.run()
    for name, p in job.model.named_parameters():
        others = comm.all_gather(p.detach()[None])
        same = all(torch.equal(p[None], other) for other in others)
        shared = any(word in name for word in ("project", "merge.weight", "feed.1.0", "feed.1.2.weight"))
        assert same != shared, name


BODIES = [
    equals_one_process,
    half_precision_stays_close,
    an_overflow_anywhere_skips_the_step_everywhere,
    stages_are_refused_where_ranks_send_nothing_to_one_another,
]
RESUMING = [resumes_in_any_layout]
NOISY = [dropout_of_whole_activations_is_equal]
"""Bodies that threads, which share generators, cannot run."""

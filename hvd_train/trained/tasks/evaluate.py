"""Measure the model of a checkpoint on one split of its data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hvd_train.compute.calling import caller
from hvd_train.compute.metrics.loss import MeanLoss
from hvd_train.compute.metrics.meter import Meter
from hvd_train.config.options import Annotated
from hvd_train.data import samples
from hvd_train.data.batch import Batch
from hvd_train.errors import UserError
from hvd_train.rank.task import TaskContext
from hvd_train.trained.evaluating.choose import batch_size, report
from hvd_train.trained.evaluating.examples import described
from hvd_train.trained.evaluating.report import Report
from hvd_train.trained.evaluating.translations import translated
from hvd_train.trained.restore import Trained, on_split, restore
from hvd_train.training.evaluation import held_out_part


def create(*, split: Annotated[str, "test, train, or the name of another held-out split"] = "test") -> Evaluate:
    return Evaluate(split)


class Evaluate:
    """Each rank measures whole batches, which are the same on any number of ranks."""

    def __init__(self, split: str) -> None:
        self._name = split

    @torch.no_grad()
    def run(self, context: TaskContext) -> dict[str, Any]:
        comm, trained = context.comm, restore(context)
        split = on_split(trained, self._name)
        made = _report(context, trained, split, _first(split, self._name))
        meters: list[Meter] = [MeanLoss(trained.built.loss), *trained.built.meters]
        size = batch_size(trained.built.data.spec, len(split))
        seconds = _measure(context, trained, split, size, [*meters, made])
        texts = translated(context, trained, split, size)
        metrics = {name: value for meter in meters for name, value in meter.compute(comm).items()}
        found = made.compute(comm)
        figures = {name: value for name, value in found.pop("figures").items() if value is not None}
        return {
            "split": self._name,
            "samples": len(split),
            "metrics": {**metrics, **{name: value for name, value in figures.items() if name not in metrics}},
            **found,
            **(described(found["worst"], split, trained.built.data) if comm.rank == 0 else {}),
            **texts,
            "batch": size,
            "ranks": comm.size,
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "samples_per_second": len(split) / seconds,
        }


def _first(split: Any, name: str) -> Any:
    """Return a batch of the first sample; UserError for a stream, and without samples."""
    if isinstance(split, samples.StreamSplit):
        raise UserError(f"--split: '{name}' is a stream, whose samples have no positions; give a held-out split")
    first = samples.first_batch(split)
    if first is None:
        raise UserError(f"--split: '{name}' has no samples; give another split, or --data test_path=PATH")
    return first


def _report(context: TaskContext, trained: Trained, split: Any, first: Any) -> Report:
    """Return the report that fits the outputs for the `first` batch."""
    built, batch = trained.built, trained.execution.prepare(first)
    with built.precision.forward():
        outputs = caller(built.model)(batch.inputs)
    return report(context.config.train.loss, built.loss, built.data, split, outputs, batch)


def _measure(
    context: TaskContext, trained: Trained, split: Any, size: int, observers: Sequence[Meter | Report]
) -> float:
    """Update `observers` with this rank's batches. Return the seconds of the slowest rank; collective."""
    own = held_out_part(split, None, context.comm, size)
    context.comm.barrier()
    begin = time.perf_counter()
    with context.progress("evaluating", -(-len(own) // size)) as advance:

        def observe(outputs: Any, batch: Batch) -> None:
            for one in observers:
                one.update(outputs, batch)
            advance()

        full = len(own) // size * size
        trained.execution.evaluate(split, own[:full], observe, size)
        with one_thread():
            trained.execution.evaluate(split, own[full:], observe, size)
    context.comm.barrier()
    return time.perf_counter() - begin


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread in the block.

    Matrix libraries divide the rows of a batch among threads. An odd number of rows then gives other
    last digits for other numbers of threads, and ranks have fewer threads the more there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

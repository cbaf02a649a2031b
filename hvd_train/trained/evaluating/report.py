"""The contract of a report, which measures what a table and pictures show of one kind of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.data.batch import Batch

Names = Sequence[str]


class Report(Protocol):
    """Measures batch after batch on each rank, then the batches of all ranks. It is used once."""

    def update(self, outputs: Any, batch: Batch) -> None:
        """Measure a batch of this rank."""

    def compute(self, comm: Communicator) -> dict[str, Any]:
        """Return what all ranks measured, as JSON, equal on every rank; collective.

        `kind` is the name of the report, `figures` are numbers by name, `rows` has one row for each
        class, label, target or token, and `worst` has the samples with the largest loss.
        """


def numbered(names: Sequence[Any] | None, number: int) -> list[str]:
    """Return `number` names: those that the data has, and the numbers of the others."""
    known = [str(name) for name in names or ()][:number]
    return [*known, *map(str, range(len(known), number))]


def ratio(part: float, whole: float) -> float | None:
    """Return part / whole, None if the whole is 0."""
    return part / whole if whole else None


def summed(comm: Communicator, values: Tensor) -> Tensor:
    """Return the sum of `values` over all ranks; collective."""
    total = values.clone()
    comm.all_reduce_(total, "sum")
    return total


def counts(places: Tensor, number: int) -> Tensor:
    """Return how often each of the places 0 to `number` - 1 occurs, int64 on the CPU."""
    return torch.bincount(places.reshape(-1).cpu(), minlength=number)


def scored(hits: float, predicted: float, support: float) -> dict[str, float | None]:
    """Return precision, recall and F1 from the correct predictions, all predictions and all targets."""
    return {
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "f1": ratio(2 * hits, predicted + support),
    }

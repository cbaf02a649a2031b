"""The contract of a meter, which measures the outputs for held-out samples."""

from __future__ import annotations

import re
from typing import Any, Protocol

from hvd_train.comm.communicator import Communicator
from hvd_train.data.batch import Batch

Value = float | list[Any]
"""A number, or lists of numbers, such as the rows of a confusion matrix."""


class Meter(Protocol):
    """Measures batch after batch on each rank, then the batches of all ranks as one evaluation.

    The ranks have consecutive parts of the samples, in rank order. No sample is in two parts, and a
    part may be empty.
    """

    name: str
    """The name of its value. Several values are called `name_KEY`."""
    higher_is_better: bool | None
    """None if the meter does not say which of two values is better."""

    def reset(self) -> None:
        """Forget all batches."""

    def update(self, outputs: Any, batch: Batch) -> None:
        """Measure a batch of this rank."""

    def compute(self, comm: Communicator) -> dict[str, Value]:
        """Return the values for the samples of all ranks of `comm`, equal on every rank; collective.

        A value is missing where the outputs and targets have none.
        """


def snake_case(name: str) -> str:
    """Return the name of a class as the name of a value: `F1Score` is `f1_score`, `AUROC` is `auroc`."""
    spelled = name.replace("SQuAD", "Squad").replace("IoU", "Iou")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", spelled).lower()

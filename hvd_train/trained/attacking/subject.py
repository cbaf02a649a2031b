"""The model under attack, and the samples that a rank attacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.compute.calling import caller
from hvd_train.data.base import Split
from hvd_train.data.batch import Batch
from hvd_train.data.samples import equally_spaced
from hvd_train.trained.restore import Trained

BATCH = 64
"""Samples of a batch. Batches are equal for any number of ranks, and so are the results, bit by bit."""


@dataclass(frozen=True)
class Subject:
    """The model in evaluation mode, and this rank's batches of a split."""

    trained: Trained
    split: Split
    plan: Sequence[Tensor]
    """The positions of the samples of each batch of all ranks."""
    comm: Communicator

    def __post_init__(self) -> None:
        self.trained.built.model.eval()

    @property
    def own(self) -> range:
        """The numbers of this rank's batches."""
        return range(self.comm.rank, len(self.plan), self.comm.size)

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield this rank's batches on the device, and their numbers. Damaged samples are left out."""
        execution, own = self.trained.execution, self.own
        loaded = execution.loader.load(self.split, [self.plan[number] for number in own])
        for number, whole in zip(own, loaded, strict=True):
            if whole is not None:
                yield number, execution.prepare(whole)

    def forward(self, inputs: Any) -> Any:
        """Return the outputs of the model, in the precision of the run."""
        with self.trained.execution.precision.forward():
            return caller(self.trained.built.model)(inputs)


def plan(split: Split, most: int | None) -> list[Tensor]:
    """Return batches of at most `most` samples of `split`, at equal distances."""
    positions = equally_spaced(len(split), most)
    return list(positions.split(BATCH)) if len(positions) else []

"""The samples with the largest loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hvd_train.comm.communicator import Communicator
from hvd_train.comm.objects import gather_json
from hvd_train.data.batch import Batch

SHOWN = 10

Row = dict[str, Any]
Describe = Callable[[int], Row]
"""Returns target, prediction and probability of the sample at an index of a batch."""


class Worst:
    """Keeps the samples with the largest loss. Of equal losses, the first positions count."""

    def __init__(self, split: Any, number: int = SHOWN) -> None:
        self._split, self._number = split, number
        self._rows: list[Row] = []

    def update(self, losses: Tensor, batch: Batch, describe: Describe) -> None:
        """Take the losses (n,) of the samples of a batch. A loss that is not a number counts as infinite."""
        wide = losses.detach().double().cpu().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        bound = self._rows[-1]["loss"] if len(self._rows) == self._number else -torch.inf
        if not len(wide) or wide.max() < bound:
            return
        positions = kept_positions(self._split, batch)
        order = torch.argsort(wide, descending=True, stable=True)[: self._number].tolist()
        found = [{"loss": float(wide[i]), "position": positions[i], **describe(i)} for i in order if wide[i] >= bound]
        self._rows = first([*self._rows, *found], self._number)

    def compute(self, comm: Communicator) -> list[Row]:
        """Return the rows of all ranks together; collective."""
        return first([row for rows in gather_json(comm, self._rows) for row in rows], self._number)


def first(rows: Sequence[Row], number: int) -> list[Row]:
    """Return the `number` rows with the largest loss, and the first positions of equal losses."""
    return sorted(rows, key=lambda row: (-row["loss"], row["position"]))[:number]


def kept_positions(split: Any, batch: Batch) -> list[int]:
    """Return the positions of the samples of a batch, from which damaged samples are left out."""
    assert batch.positions is not None, "the batch is not of an evaluation"
    if batch.samples == len(batch.positions):
        return batch.positions.tolist()
    return [int(position) for position in batch.positions if split.batch(position.reshape(1)) is not None]

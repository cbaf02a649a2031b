"""Splits the elements of tensors among owners, and names the optimizers that allow it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

ELEMENTWISE = {
    "SGD", "Adam", "AdamW", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "NAdam", "RAdam", "ASGD",
}  # fmt: skip
"""Optimizers that update each element on its own: a parameter may be split anywhere."""

WHOLE = {"Adafactor", "Muon"}
"""Optimizers that need a whole parameter: parameters may be split from one another only."""


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `stop` of the flattened parameter number `index`, owned by `owner`."""

    index: int
    owner: int
    start: int
    stop: int

    def of(self, parameter: Tensor) -> Tensor:
        """Return these elements of a tensor shaped like the parameter.

        They are a flat view, or the tensor itself if they are all its elements.
        """
        if self.stop - self.start == parameter.numel():
            return parameter
        return parameter.reshape(-1)[self.start : self.stop]


def cut(sizes: Sequence[int], owners: int, *, whole: bool, multiple: int = 1) -> list[Piece]:
    """Split consecutive tensors of `sizes` elements into `owners` runs of nearly equal length.

    Cuts fall on multiples of `multiple` elements of a tensor. With `whole`, they fall between
    tensors only.
    """
    total, pieces, before = sum(sizes), [], 0
    for index, size in enumerate(sizes):
        if whole:
            owner = min(owners - 1, (2 * before + size) * owners // (2 * max(total, 1)))
            pieces.append(Piece(index, owner, 0, size))
        else:
            pieces += _cut_one(index, size, before, total, owners, multiple)
        before += size
    return pieces


def _cut_one(index: int, size: int, before: int, total: int, owners: int, multiple: int) -> Iterable[Piece]:
    start = 0
    for owner in range(owners):
        end = total * (owner + 1) // owners - before
        stop = size if owner == owners - 1 else min(size, max(start, end // multiple * multiple))
        if stop > start:
            yield Piece(index, owner, start, stop)
            start = stop

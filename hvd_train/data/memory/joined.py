"""Arrays of one dimension, read as if they were one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from hvd_train.data.memory.mapped import MappedArray
from hvd_train.data.value_checks import Array


class Joined:
    """Arrays of one dimension and one dtype, one after another."""

    def __init__(self, parts: Sequence[MappedArray]) -> None:
        self.parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def divided(self, position: int) -> tuple[Joined, Joined]:
        """Return the values before `position`, and the others."""
        cuts = [min(max(position - start, 0), len(part)) for part, start in zip(self.parts, self._starts, strict=False)]
        before = [part.part(0, cut) for part, cut in zip(self.parts, cuts, strict=True)]
        return Joined(before), Joined([part.part(cut, len(part)) for part, cut in zip(self.parts, cuts, strict=True)])

    def place(self, position: int) -> tuple[MappedArray, int]:
        """Return the array that has the value at `position`, and the position in that array."""
        number = int(np.searchsorted(self._starts, position, "right")) - 1
        return self.parts[number], position - int(self._starts[number])

    def windows(self, starts: Tensor, length: int) -> Array:
        """Return the `length` values from each of the positions `starts`, as rows of a new array."""
        rows = np.empty((len(starts), length), self.parts[0].dtype)
        for row, start in zip(rows, starts.tolist(), strict=True):
            filled, number = 0, int(np.searchsorted(self._starts, start, "right")) - 1
            while filled < length:
                at = start + filled - self._starts[number]
                piece = self.parts[number].values[at : at + length - filled]
                row[filled : filled + len(piece)] = piece
                filled, number = filled + len(piece), number + 1
        return rows

"""Rows of mapped arrays as tensors, and splits of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.memory.mapped import MappedArray
from hvd_train.data.value_checks import Array, Convert


class MappedRows:
    """Rows of a mapped array, each converted when it is read. It is pickled without any row.

    Row i is row `order[i]` of the array, or row i itself without `order`. It has the shape `shape`.
    """

    def __init__(
        self, array: MappedArray, convert: Convert, shape: tuple[int, ...], order: MappedRows | None = None
    ) -> None:
        self.array, self._convert, self.shape, self._order = array, convert, shape, order
        # An array in a zip file may be unaligned. numpy.take would copy it whole; bytes are aligned.
        self._is_aligned = array.values.flags.aligned
        rows = array.values.reshape(len(array), prod(array.shape[1:]))
        self._rows = rows.reshape(len(array), *shape) if self._is_aligned else rows.view(np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedRows, (self.array, self._convert, self.shape, self._order)

    def __len__(self) -> int:
        return len(self.array if self._order is None else self._order)

    def take(self, indices: Tensor) -> Tensor:
        """Return the rows at `indices` (int64), stacked in new memory."""
        return torch.from_numpy(self._taken(indices.numpy()))

    def _taken(self, indices: Array) -> Array:
        if self._order is not None:
            indices = self._order._taken(indices)
        taken = self._rows.take(indices, 0)
        if not self._is_aligned:
            taken = taken.view(self.array.dtype).reshape(len(indices), *self.shape)
        return self._convert(taken)


@dataclass(frozen=True)
class MappedSplit:
    """A split whose inputs and targets are mapped.

    Targets of shape () are classes (int64), stored in the order of the split.
    """

    x: MappedRows
    y: MappedRows

    def __len__(self) -> int:
        return len(self.x)

    @property
    def labels(self) -> Tensor:
        return torch.tensor(-1).expand(len(self)) if self.y.shape else _shared(self.y.array)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.x.take(indices), self.y.take(indices)


def _shared(array: MappedArray) -> Tensor:
    """Return a tensor in the memory of a mapped array. It must not be written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array.values)

"""Arrays in files that are mapped into memory: the processes of a host share one copy of each page."""

from __future__ import annotations

import mmap
import os
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError


class MappedFile:
    """A file whose bytes are mapped into memory, read-only.

    It is pickled as its path, and the receiving process maps the file again. The mapping is shared
    and read-only: a private one that may be written counts as memory of the process, so that Linux
    refuses one that is larger than the memory.
    """

    def __init__(self, path: str | Path, owner: Any = None) -> None:
        """Map the file at `path` and keep `owner` as long. Raise UserError if it cannot be read."""
        self.path, self._owner = str(path), owner
        try:
            with open(path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                self.memory = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ) if self.size else b""
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedFile, (self.path,)

    def array(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> MappedArray:
        """Return the array in C order that begins at byte `offset`; UserError if the file ends in it."""
        return MappedArray(self, offset, dtype, shape)


class MappedArray:
    """An array in a mapped file. It is pickled as its place in the file.

    `values` is a view of the mapping, which may be unaligned and in another byte order.
    """

    def __init__(self, file: MappedFile, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.file, self.offset, self.dtype, self.shape = file, offset, dtype, shape
        end = offset + prod(shape) * dtype.itemsize
        if file.size < end:
            raise UserError(f"{file.path}: {file.size} bytes, expected {end} for {dtype.name} of shape {shape}")
        self.values: Array = np.ndarray(shape, dtype, file.memory, offset) if end > offset else np.empty(shape, dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedArray, (self.file, self.offset, self.dtype, self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def part(self, begin: int, end: int) -> MappedArray:
        """Return the rows from `begin` to `end`."""
        offset = self.offset + begin * prod(self.shape[1:]) * self.dtype.itemsize
        return MappedArray(self.file, offset, self.dtype, (end - begin, *self.shape[1:]))

"""Arrays in NumPy's .npy format that can be mapped."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from numpy.lib import format as npy

from hvd_train.data.memory.mapped import MappedArray, MappedFile

HEADER = 2**16
"""Bytes from which a header is read. NumPy's default limit is 10,000."""
_READERS: dict[tuple[int, int], Callable[..., Any]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


def mapped(file: MappedFile, offset: int = 0) -> MappedArray | None:
    """Return the array whose .npy header is at byte `offset`.

    Return None if it must be read: objects, Fortran order, a header of another version. Raise
    ValueError if there is no header.
    """
    stream = io.BytesIO(file.memory[offset : offset + HEADER])
    read_header = _READERS.get(npy.read_magic(stream))
    if read_header is None:
        return None
    shape, is_fortran, dtype = read_header(stream)
    if dtype.hasobject or (is_fortran and len(shape) > 1):
        return None
    return file.array(offset + stream.tell(), dtype, shape)

"""Rows of array files in blocks, and arrays of JSON Lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path

from hvd_train.data.memory.dataset import StoredArray, widened
from hvd_train.data.sources import idx, npy, npz, safetensors
from hvd_train.data.tables.endings import LINES, suffix
from hvd_train.errors import UserError
from hvd_train.trained.input import Block, Place
from hvd_train.trained.reading import lines

VALUES = 2**20
"""Values in a block, if that is no less than `lines.ROWS` rows."""
MOST_ROWS = 2**14

_READERS: dict[str, Callable[[Path, str], StoredArray]] = {
    ".npz": lambda path, name: npz.stored(path, name),
    ".npy": lambda path, _: StoredArray(npy.mapped(path), str(path)),
    ".safetensors": lambda path, name: safetensors.stored(path, name),
    "": lambda path, _: StoredArray(idx.inputs(path), str(path)),
}
"""How files of each ending are read. Files in the IDX format of MNIST have no ending, or -ubyte."""


def blocks(paths: Sequence[str], name: str) -> Iterator[Block]:
    """Yield blocks of the rows of files; `name` is that of the array in files of several arrays.

    Raise UserError for a file without rows, and for one that is none of these.
    """
    for path in paths:
        ending = suffix(path)
        if path == lines.STDIN or ending in LINES:
            yield from lines.json_blocks([path])
        else:
            yield from _of_file(path, name, _READERS.get("" if "ubyte" in ending else ending))


def _of_file(path: str, name: str, read: Callable[[Path, str], StoredArray] | None) -> Iterator[Block]:
    if read is None:
        known = ", ".join(filter(None, _READERS))
        raise UserError(f"{path}: expected a file of arrays: {known}, IDX, or JSON Lines of nested lists")
    stored = read(lines.find(path), name)
    values = stored.array.values
    if not values.ndim or not len(values):
        raise UserError(f"{stored.name}: has the shape {values.shape}, expected at least one row")
    step = min(MOST_ROWS, max(lines.ROWS, VALUES // max(1, prod(values.shape[1:]))))
    for start in range(0, len(values), step):
        rows = values[start : start + step]
        yield Block(widened(rows) if stored.convert is widened else rows, _place(stored.name, start))


def _place(name: str, start: int) -> Place:
    return lambda row: f"{name}, row {start + row} (from 0)"

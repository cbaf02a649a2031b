"""Files in the IDX format of MNIST, plain or gzip: images and labels, for training and testing."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import Annotated
from hvd_train.data.base import Dataset
from hvd_train.data.files import find_file, test_pairs
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.dataset import Part, StoredArray, dataset, scaled
from hvd_train.data.memory.mapped import MappedArray, MappedFile
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.memory.once import decoded
from hvd_train.data.value_checks import Array, single
from hvd_train.errors import UserError

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

GZIP = b"\x1f\x8b"
"""The first bytes of a gzip file."""


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    images: Annotated[str, "file of the training inputs"],
    labels: Annotated[str, "file of the training targets; integers are classes, floats a regression"],
    test_images: Annotated[
        str | dict[str, str] | None,
        "file of the test inputs, or several by name: the first is the test split; without it, no samples are held out",
    ] = None,
    test_labels: Annotated[
        str | dict[str, str] | None, "file of the test targets, or several by the same names"
    ] = None,
) -> Dataset:
    """Return inputs in float32. Plain files are mapped into memory; others are read once per host.

    Bytes are scaled to [0, 1], and images of one plane become (1, height, width).

    Raise UserError for a file that is missing, has another format, or has another length than its
    header says.
    """
    tests = test_pairs(test_images, test_labels, ("test_images", "test_labels"))
    train = _part(images, labels, "", node)
    hold_out = None if fold is None else HoldOut(0.0, 0, fold)
    return dataset(train, {name: _part(*pair, "test_", node) for name, pair in tests.items()}, hold_out, node)


def _part(images: str, labels: str, prefix: str, node: Node) -> Part:
    x = inputs(find_file(images, f"{prefix}images"), node)
    y = _array(find_file(labels, f"{prefix}labels"), node)
    return Part(StoredArray(x, images, scaled if x.dtype == np.uint8 else single), StoredArray(y, labels), images)


def inputs(path: Path, node: Node = ALONE) -> MappedArray:
    """Return the inputs of a file, not scaled; UserError for another format. Collective."""
    x = _array(path, node)
    return x.file.array(x.offset, x.dtype, (len(x), 1, *x.shape[1:])) if len(x.shape) == 3 else x


def _array(path: Path, node: Node) -> MappedArray:
    file = MappedFile(path)
    if file.memory[:2] == GZIP:
        return decoded(node, lambda: _read(path))
    offset, dtype, shape = _described(file.memory, path)
    return file.array(offset, dtype, shape)


def _read(path: Path) -> Array:
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file: {error}") from error
    offset, dtype, shape = _described(content, path)
    return np.frombuffer(content, dtype, offset=offset).reshape(shape)


def _described(content: bytes | mmap, path: Path) -> tuple[int, np.dtype[Any], tuple[int, ...]]:
    """Return where the values begin, their type and their shape."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES:
        raise UserError(f"{path}: starts with {content[:4].hex(' ')}, expected an IDX header: 00 00 type dimensions")
    dtype, start = np.dtype(TYPES[content[2]]), 4 + 4 * content[3]
    if len(content) < start:
        raise UserError(f"{path}: {len(content)} bytes, expected a header of {start}")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    size = start + math.prod(shape) * dtype.itemsize
    if len(content) != size:
        raise UserError(f"{path}: {len(content)} bytes, expected {size} for {dtype.name} of shape {shape}")
    return start, dtype, shape

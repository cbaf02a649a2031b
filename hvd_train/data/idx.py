"""Files in the IDX format of MNIST, plain or gzip: one of images, one of labels, and the same for testing."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from hvd_train.data._check import Array
from hvd_train.data._source import Named, Samples, as_samples, existing, with_test, without_test
from hvd_train.data.base import Dataset
from hvd_train.errors import UserError
from hvd_train.options import Annotated

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def create(
    *,
    images: Annotated[str, "file of the training inputs"],
    labels: Annotated[str, "file of the training targets: integers are classes, floats a regression"],
    test_images: Annotated[str | None, "file of the test inputs; none are held out without it"] = None,
    test_labels: Annotated[str | None, "file of the test targets"] = None,
) -> Dataset:
    """Inputs in float32: bytes are scaled to [0, 1], images of one plane become (1, height, width).

    UserError for a file that is missing, of another format, or of another length than its header says.
    """
    if (test_images is None) != (test_labels is None):
        raise UserError("data.test_images and data.test_labels: expected both or neither")
    train = _samples(images, labels, "")
    if test_images is None or test_labels is None:
        return without_test(train)
    return with_test(train, _samples(test_images, test_labels, "test_"), test_images)


def _samples(images: str, labels: str, prefix: str) -> Samples:
    x = _read(existing(images, f"{prefix}images"))
    y = _read(existing(labels, f"{prefix}labels"))
    scaled = np.divide(x, 255, dtype=np.float32) if x.dtype == np.uint8 else x
    return as_samples(Named(scaled[:, None] if x.ndim == 3 else scaled, images), Named(y, labels))


def _read(path: Path) -> Array:
    content = _content(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES:
        raise UserError(f"{path}: starts with {content[:4].hex(' ')}, expected an IDX header: 00 00 type dimensions")
    dtype, start = np.dtype(TYPES[content[2]]), 4 + 4 * content[3]
    if len(content) < start:
        raise UserError(f"{path}: {len(content)} bytes, expected a header of {start}")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    size = start + math.prod(shape) * dtype.itemsize
    if len(content) != size:
        raise UserError(f"{path}: {len(content)} bytes, expected {size} for {dtype.name} of shape {shape}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file: {error}") from error

"""Tensors of a safetensors file: one of inputs and one of targets, which stay on disk."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import Annotated, HeldOutFraction, HeldOutSeed
from hvd_train.data.base import Dataset
from hvd_train.data.files import find_file, test_files
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.dataset import Part, StoredArray, dataset, widened
from hvd_train.data.memory.mapped import MappedFile
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.value_checks import single
from hvd_train.errors import UserError, nearest

TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
LENGTH = 8
"""Bytes of the length of the header, which comes first in the file."""


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    path: Annotated[str, "safetensors file with the training samples"],
    x: Annotated[str, "name of the tensor of inputs, one row for each sample"] = "x",
    y: Annotated[str, "name of the tensor of targets; integers are classes, floats a regression"] = "y",
    test_path: Annotated[
        str | dict[str, str] | None,
        "file with the test samples in tensors of the same names; several by name: the first is the test split",
    ] = None,
    test_fraction: HeldOutFraction = 0.2,
    seed: HeldOutSeed = 0,
) -> Dataset:
    """Return inputs in float32. The file is mapped into memory, so that ranks share it.

    Raise UserError for a file or a tensor that is missing, truncated or holds no numbers.
    """
    hold_out = HoldOut(test_fraction, seed, fold)
    train = _part(find_file(path, "path"), x, y, hold_out.group)
    tests = {name: _part(file, x, y) for name, file in test_files(test_path).items()}
    return dataset(train, tests, hold_out, node)


def _part(path: Path, x: str, y: str, groups: str | None = None) -> Part:
    return Part(stored(path, x), stored(path, y), str(path), None if groups is None else stored(path, groups))


def stored(path: Path, name: str) -> StoredArray:
    """Return the tensor `name` of a file; UserError if it is missing or the file is damaged."""
    file = MappedFile(path)
    return _tensor(file, *_header(file), name)


def _header(file: MappedFile) -> tuple[int, dict[str, Any]]:
    """Return where the tensors begin, and what the file says of each."""
    size = struct.unpack("<Q", file.memory[:LENGTH])[0] if file.size >= LENGTH else file.size
    if LENGTH + size > file.size:
        raise UserError(f"{file.path}: {file.size} bytes, expected a safetensors file: a length, a header and tensors")
    try:
        header = json.loads(file.memory[LENGTH : LENGTH + size])
    except ValueError as error:
        raise UserError(f"{file.path}: not a safetensors file: its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise UserError(f"{file.path}: not a safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    return LENGTH + size, header


def _tensor(file: MappedFile, start: int, header: dict[str, Any], name: str) -> StoredArray:
    if name not in header:
        raise UserError(f"{file.path}: no tensor '{name}'{nearest(name, list(header))}")
    what = f"{file.path}: tensor '{name}'"
    try:
        kind, shape, (begin, end) = (header[name][key] for key in ("dtype", "shape", "data_offsets"))
        dtype = np.dtype(TYPES[kind]) if kind in TYPES else None
        values = np.prod(shape, dtype=np.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{what}: not a safetensors file: the header describes it as {header[name]}") from error
    if dtype is None:
        raise UserError(f"{what} is of type {kind}, expected one of {', '.join(TYPES)}")
    if begin < 0 or end - begin != values * dtype.itemsize:
        raise UserError(f"{what}: {end - begin} bytes, expected {values * dtype.itemsize} for {kind} of shape {shape}")
    return StoredArray(
        file.array(start + begin, dtype, tuple(shape)), what, widened if kind == "BF16" else single, name
    )

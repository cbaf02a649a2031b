"""Arrays of a NumPy .npz file: one array of inputs and one of targets."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import Annotated, HeldOutFraction, HeldOutSeed
from hvd_train.data.base import Dataset
from hvd_train.data.files import find_file, test_files
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory import npy
from hvd_train.data.memory.dataset import Part, StoredArray, dataset
from hvd_train.data.memory.mapped import MappedArray, MappedFile
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.memory.once import decoded
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError, nearest

LOCAL_HEADER = 30
"""Bytes of the header of a member of a zip file, before its name and an extra field."""
ENCRYPTED = 1
"""The bit among the flags of an encrypted member."""


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    path: Annotated[str, ".npz file with the training samples"],
    x: Annotated[str, "name of the array of inputs, one row for each sample"] = "x",
    y: Annotated[str, "name of the array of targets; integers are classes, floats a regression"] = "y",
    test_path: Annotated[
        str | dict[str, str] | None,
        ".npz file with the test samples in arrays of the same names; several by name: the first is the test split",
    ] = None,
    test_fraction: HeldOutFraction = 0.2,
    seed: HeldOutSeed = 0,
) -> Dataset:
    """Return inputs in float32. Arrays that `numpy.savez` wrote are mapped into memory.

    An array that is compressed is read once per host.

    Raise UserError for a file or an array that is missing or holds no numbers.
    """
    hold_out = HoldOut(test_fraction, seed, fold)
    train = _part(find_file(path, "path"), path, x, y, node, hold_out.group)
    tests = {name: _part(file, str(file), x, y, node) for name, file in test_files(test_path).items()}
    return dataset(train, tests, hold_out, node)


def _part(path: Path, where: str, x: str, y: str, node: Node, groups: str | None = None) -> Part:
    found = None if groups is None else stored(path, groups, node)
    return Part(stored(path, x, node), stored(path, y, node), where, found)


def stored(path: Path, name: str, node: Node = ALONE) -> StoredArray:
    """Return the array `name` of a file; UserError if it is missing or cannot be read. Collective."""
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not an .npz file, expected what numpy.savez writes")
    with np.load(path, allow_pickle=False) as archive:
        return StoredArray(_array(archive, name, MappedFile(path), node), f"{path}: array '{name}'", member=name)


def _array(archive: np.lib.npyio.NpzFile, name: str, file: MappedFile, node: Node) -> MappedArray:
    if name not in archive.files:
        raise UserError(f"{file.path}: no array '{name}'{nearest(name, archive.files)}")
    array = _mapped(archive, name, file)
    return decoded(node, lambda: _read(archive, name, file)) if array is None else array


def _mapped(archive: np.lib.npyio.NpzFile, name: str, file: MappedFile) -> MappedArray | None:
    """Return an array that is stored as it is; None if it must be read."""
    assert archive.zip is not None, "the archive is open"
    member = archive.zip.getinfo(f"{name}.npy" if f"{name}.npy" in archive.zip.namelist() else name)
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & ENCRYPTED:
        return None
    header = file.memory[member.header_offset : member.header_offset + LOCAL_HEADER]
    start = member.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", header[-4:]))
    try:
        array = npy.mapped(file, start)
    except (ValueError, UserError):
        return None  # reading it says what is wrong
    whole = array is not None and array.offset + array.values.nbytes == start + member.file_size
    return array if whole else None


def _read(archive: np.lib.npyio.NpzFile, name: str, file: MappedFile) -> Array:
    try:
        return np.asarray(archive[name])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file.path}: array '{name}' cannot be read: {error}") from error

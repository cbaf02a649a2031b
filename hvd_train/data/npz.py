"""Arrays of a NumPy .npz file: one array of inputs, one of targets."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from hvd_train.data._check import Array
from hvd_train.data._source import Named, Samples, as_samples, existing, hold_out, with_test
from hvd_train.data.base import Dataset
from hvd_train.errors import UserError, nearest
from hvd_train.options import Annotated, Fraction, NonNegativeInt


def create(
    *,
    path: Annotated[str, ".npz file with the training samples"],
    x: Annotated[str, "name of the array of inputs, one a row"] = "x",
    y: Annotated[str, "name of the array of targets: integers are classes, floats a regression"] = "y",
    test_path: Annotated[str | None, ".npz file with the test samples, in arrays of the same names"] = None,
    test_fraction: Annotated[Fraction, "share of the samples held out where there is no test_path"] = 0.2,
    seed: Annotated[NonNegativeInt, "chooses the samples held out"] = 0,
) -> Dataset:
    """Inputs as stored, in float32. UserError for a file, or an array, that is missing or not numbers."""
    train = _samples(existing(path, "path"), x, y)
    if test_path is None:
        return hold_out(train, test_fraction, seed, path)
    return with_test(train, _samples(existing(test_path, "test_path"), x, y), test_path)


def _samples(path: Path, x: str, y: str) -> Samples:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path}: not an .npz file, expected what numpy.savez writes")
    with np.load(path, allow_pickle=False) as archive:
        inputs, targets = (Named(_array(archive, name, path), f"{path}: array '{name}'") for name in (x, y))
        return as_samples(inputs, targets)


def _array(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> Array:
    if name not in archive.files:
        raise UserError(f"{path}: no array '{name}'{nearest(name, archive.files)}")
    try:
        return np.asarray(archive[name])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: array '{name}' cannot be read: {error}") from error

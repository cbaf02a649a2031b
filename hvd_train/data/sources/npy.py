"""Two NumPy .npy files: an array of inputs and one of targets, which stay on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import Annotated, Fraction, HeldOutSeed
from hvd_train.data.base import Dataset
from hvd_train.data.files import find_file, test_pairs
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory import npy
from hvd_train.data.memory.dataset import Part, StoredArray, dataset
from hvd_train.data.memory.mapped import MappedArray, MappedFile
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.memory.once import decoded
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    x: Annotated[str, ".npy file of the inputs, one row for each sample"],
    y: Annotated[str, ".npy file of the targets; integers are classes, floats a regression"],
    test_x: Annotated[
        str | dict[str, str] | None, "file of the test inputs; several by name: the first is the test split"
    ] = None,
    test_y: Annotated[str | dict[str, str] | None, "file of the test targets; several by the same names"] = None,
    test_fraction: Annotated[Fraction, "fraction of the samples that is held out for evaluation without test_x"] = 0.2,
    seed: HeldOutSeed = 0,
) -> Dataset:
    """Return inputs in float32. Files are mapped into memory, so that ranks share them.

    Raise UserError for a file that is missing, truncated or holds no numbers.
    """
    tests = test_pairs(test_x, test_y, ("test_x", "test_y"))
    return dataset(
        _part(x, y, "", node),
        {name: _part(*pair, "test_", node) for name, pair in tests.items()},
        HoldOut(test_fraction, seed, fold),
        node,
    )


def _part(x: str, y: str, prefix: str, node: Node) -> Part:
    return Part(_array(x, f"{prefix}x", node), _array(y, f"{prefix}y", node), x)


def _array(path: str, option: str, node: Node) -> StoredArray:
    return StoredArray(mapped(find_file(path, option), node), path)


def mapped(path: Path, node: Node = ALONE) -> MappedArray:
    """Return the array of a file; UserError if it cannot be read. Collective."""
    try:
        array = npy.mapped(MappedFile(path))
    except ValueError as error:
        raise UserError(f"{path}: not a .npy file, expected what numpy.save writes ({error})") from error
    return decoded(node, lambda: _read(path)) if array is None else array


def _read(path: Path) -> Array:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error

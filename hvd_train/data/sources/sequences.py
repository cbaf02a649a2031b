"""Sequences of unequal length, one after another in an array of an .npz or safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import Annotated, HeldOutFraction, HeldOutSeed
from hvd_train.data.arrays import NamedArray, as_samples
from hvd_train.data.base import Dataset
from hvd_train.data.files import find_file, test_files
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.dataset import StoredArray, group_numbers
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.memory.rows import MappedRows
from hvd_train.data.memory.sequences import KIND, Part, SequenceSplit, dataset, starts_of
from hvd_train.data.sources import npz, safetensors
from hvd_train.errors import UserError


class Names(NamedTuple):
    """The names of the arrays in a file."""

    x: str
    y: str
    lengths: str
    groups: str | None


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    path: Annotated[str, ".npz or .safetensors file with the training samples"],
    x: Annotated[str, "name of the array of all steps (steps, features), sequence after sequence"] = "x",
    y: Annotated[
        str, "name of the array of targets, one row a sequence; integers are classes, floats a regression"
    ] = "y",
    lengths: Annotated[str, "name of the array of integers with the steps of each sequence"] = "lengths",
    groups: Annotated[
        str | None, "name of an array of integers with the group of each sequence, such as its speaker, for partitions"
    ] = None,
    test_path: Annotated[
        str | dict[str, str] | None,
        "file with the test samples in arrays of the same names; several by name: the first is the test split",
    ] = None,
    test_fraction: HeldOutFraction = 0.2,
    seed: HeldOutSeed = 0,
    standardise: Annotated[
        bool, "scale each feature to mean 0 and standard deviation 1 over the training steps"
    ] = False,
) -> Dataset:
    """Return samples {x, mask, y}: float32 (time, features), and a mask that is True for steps of the sequence.

    A batch is as long as its longest sequence; shorter ones end with zeros. The steps stay in the
    file, or are read once per host if they are compressed.

    Raise UserError for an array that is missing or holds no numbers, for a sequence without steps,
    and for lengths that do not add up to the steps.
    """
    hold_out, names = HoldOut(test_fraction, seed, fold), Names(x, y, lengths, groups)
    train = _part(find_file(path, "path"), names._replace(groups=hold_out.group or groups), node)
    tests = {name: _part(file, names, node) for name, file in test_files(test_path).items()}
    return dataset(train, tests, hold_out, node, fitted, standardise=standardise)


def stored(path: Path, name: str, node: Node = ALONE) -> StoredArray:
    """Return the array `name` of a file; UserError if it is missing or cannot be read. Collective."""
    if path.suffix == ".safetensors":
        return safetensors.stored(path, name)
    if path.suffix == ".npz":
        return npz.stored(path, name, node)
    raise UserError(f"{path}: ends with '{path.suffix}', expected an .npz or .safetensors file")


def _part(path: Path, names: Names, node: Node) -> Part:
    x = stored(path, names.x, node)
    values = x.array.values
    if values.ndim not in {1, 2} or values.dtype.kind not in "biuf" or not values.size:
        raise UserError(f"{x.name} is {values.dtype} of shape {values.shape}, expected numbers (steps, features)")
    lengths, y = stored(path, names.lengths, node), stored(path, names.y, node)
    starts, found = starts_of(lengths.array.values, lengths.name, len(values))
    warning = x.check(node)
    steps = MappedRows(x.array, x.convert, values.shape[1:] or (1,))
    groups = None if names.groups is None else group_numbers(stored(path, names.groups, node), len(found))
    split = SequenceSplit(steps, starts, found, _targets(y, lengths), groups=groups)
    facts = {"kind": KIND, "x": names.x, "lengths": names.lengths}
    return Part(split, str(path), y.name, facts, (warning,) if warning else ())


def _targets(y: StoredArray, lengths: StoredArray) -> Tensor:
    """Return the targets, one row for each of the lengths."""
    values = y.convert(y.array.values) if y.is_float else y.array.values
    return as_samples(NamedArray(lengths.array.values, lengths.name), NamedArray(values, y.name)).y

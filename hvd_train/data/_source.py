"""Steps that data sources share: finding a file, importing an extra, turning arrays into splits."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvd_train.data._check import Array, at, classes, finite, inexact, remarks
from hvd_train.data.base import Dataset, TensorSplit, describe, held_out, tensor_split
from hvd_train.errors import UserError, nearest


def existing(path: str, option: str) -> Path:
    """The file at `path` (`~` is the home folder); UserError names the option that asked for it."""
    file = Path(path).expanduser()
    if not file.is_file():
        folder = file.parent
        known = [f.name for f in folder.iterdir() if f.is_file()] if folder.is_dir() else []
        raise UserError(f"data.{option}: no file '{path}'{nearest(file.name, known)}")
    return file


def extra(module: str) -> Any:
    """A module of the `data` extra, imported; UserError says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(str(error.name)) from error


def shipped(package: str, name: str) -> Path:
    """A file that a package of the `data` extra brings; to import scikit-learn takes a second of every rank's start."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package)
    return Path(spec.submodule_search_locations[0]) / name


def _missing(package: str) -> UserError:
    return UserError(f"this data source needs {package}: pip install 'ddl[data]'")


@dataclass(frozen=True)
class Named:
    """An array, and what messages call it: `a.npz: array 'x'`."""

    values: Array
    name: str


@dataclass(frozen=True)
class Samples:
    """Inputs `(n, ...)` in float32, int64 classes `(n,)` or float32 targets `(n, k)`, and what messages call the targets."""

    x: Tensor
    y: Tensor
    name: str
    warnings: tuple[str, ...] = ()


def as_samples(x: Named, y: Named) -> Samples:
    """Inputs and targets as tensors; integers, one a sample, are classes.

    UserError for arrays that are no real numbers, are empty or differ in length, for values that are not finite, and for
    negative classes.
    """
    for array in (x, y):
        if array.values.dtype.kind not in "biuf" or array.values.ndim == 0:
            raise UserError(f"{array.name} is {_kind_of(array.values)}")
    if len(x.values) != len(y.values):
        raise UserError(
            f"{x.name}, {y.name}: {len(x.values)} inputs but {len(y.values)} targets, expected one target for each input"
        )
    for array in (x, y):
        if array.values.size == 0:
            raise UserError(f"{array.name}: empty, expected at least one sample")
    inputs = torch.from_numpy(finite(x.values, at(x.name))).reshape(len(x.values), *(x.values.shape[1:] or (1,)))
    rounded = inexact(x.values, "float32", at(x.name)) if x.values.dtype.kind in "iu" else None
    return Samples(inputs, _targets(y), y.name, (rounded,) if rounded else ())


def _kind_of(array: Array) -> str:
    hint = {
        "c": "real numbers: store real and imaginary parts as two values",
        "U": "numbers: numpy.unique(texts, return_inverse=True)[1] numbers texts as classes",
        "V": "numbers: store each field as an array; bfloat16 as float32",
        "M": "numbers: store times as seconds",
    }.get(array.dtype.kind, "numbers")
    return f"{array.dtype} of shape {array.shape}, expected {hint}, one row a sample"


def _targets(y: Named) -> Tensor:
    if y.values.dtype.kind == "f" or y.values.size != len(y.values):
        return torch.from_numpy(finite(y.values, at(y.name))).reshape(len(y.values), -1)
    return classes(y.values, y.name)


def split(x: Tensor, y: Tensor, fraction: float, seed: int, where: str) -> tuple[TensorSplit, TensorSplit]:
    """Training and test samples, chosen at random; UserError where none is left for training."""
    train, test = held_out(x, y, fraction, seed)
    if len(train) == 0:
        raise none_left(fraction, len(x), where)
    return train, test


def none_left(fraction: float, samples: int, where: str) -> UserError:
    return UserError(f"{where}: test_fraction {fraction} leaves none of {samples} samples for training")


def hold_out(whole: Samples, fraction: float, seed: int, where: str) -> Dataset:
    """A data set of which a fraction is held out by `split`."""
    return _dataset(*split(whole.x, whole.y, fraction, seed, where), whole)


def with_test(train: Samples, test: Samples, where: str) -> Dataset:
    """A data set of training and test samples; UserError where their shapes differ."""
    (x, y), (test_x, test_y) = (train.x, train.y), (test.x, test.y)
    if x.shape[1:] != test_x.shape[1:] or y.shape[1:] != test_y.shape[1:] or y.dtype != test_y.dtype:
        raise UserError(
            f"{where}: samples of shape {tuple(test_x.shape[1:])} with {_kind(test_y)}, "
            f"expected {tuple(x.shape[1:])} with {_kind(y)} as in the training data"
        )
    return _dataset(tensor_split(x, y), tensor_split(test_x, test_y), train, test.warnings)


def without_test(train: Samples) -> Dataset:
    """A data set of training samples alone."""
    return _dataset(tensor_split(train.x, train.y), tensor_split(train.x[:0], train.y[:0]), train)


def _dataset(train: TensorSplit, test: TensorSplit, made: Samples, more: tuple[str, ...] = ()) -> Dataset:
    spec = describe(train.x, torch.cat([train.y, test.y]))
    return Dataset(train, test, spec, (*made.warnings, *more, *remarks(train.y, test.y, spec.outputs, made.name)))


def _kind(y: Tensor) -> str:
    return "classes" if y.dtype == torch.int64 else f"{y.shape[1]} target values"

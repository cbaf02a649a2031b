"""Steps that data sources share: finding a file, importing an extra, turning arrays into splits."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvd_train.data.base import Dataset, TensorSplit, describe, held_out, tensor_split
from hvd_train.errors import UserError, nearest

Array = npt.NDArray[Any]


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


def tensors(x: Array, y: Array, where: str) -> tuple[Tensor, Tensor]:
    """Inputs `(n, ...)` in float32, and int64 classes `(n,)` or float32 targets `(n, k)`.

    Integers, one a sample, are classes. UserError, beginning with `where`, for arrays that are no numbers,
    are empty or differ in length, and for negative classes.
    """
    for name, array in {"inputs": x, "targets": y}.items():
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            kind = f"{array.dtype} of shape {array.shape}"
            raise UserError(f"{where}: the {name} are {kind}, expected numbers, one row a sample")
    if len(x) != len(y):
        raise UserError(f"{where}: {len(x)} inputs but {len(y)} targets, expected one target for each input")
    if x.size == 0 or y.size == 0:
        raise UserError(f"{where}: empty, expected at least one sample")
    inputs = torch.from_numpy(x.astype(np.float32)).reshape(len(x), *(x.shape[1:] or (1,)))
    return inputs, _targets(y, where)


def _targets(y: Array, where: str) -> Tensor:
    if y.dtype.kind == "f" or y.size != len(y):
        return torch.from_numpy(y.astype(np.float32)).reshape(len(y), -1)
    if y.min() < 0:
        raise UserError(f"{where}: found the class {y.min()}, expected classes 0, 1, 2, ...")
    return torch.from_numpy(y.astype(np.int64)).reshape(-1)


def split(x: Tensor, y: Tensor, fraction: float, seed: int, where: str) -> tuple[TensorSplit, TensorSplit]:
    """Training and test samples, chosen at random; UserError where none is left for training."""
    train, test = held_out(x, y, fraction, seed)
    if len(train) == 0:
        raise UserError(f"{where}: test_fraction {fraction} leaves none of {len(x)} samples for training")
    return train, test


def hold_out(x: Tensor, y: Tensor, fraction: float, seed: int, where: str) -> Dataset:
    """A data set of samples `x` and targets `y`, a fraction of them held out by `split`."""
    return Dataset(*split(x, y, fraction, seed, where), describe(x, y))


def with_test(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], where: str) -> Dataset:
    """A data set of training and test samples, each `(x, y)`; UserError where their shapes differ."""
    (x, y), (test_x, test_y) = train, test
    if x.shape[1:] != test_x.shape[1:] or y.shape[1:] != test_y.shape[1:] or y.dtype != test_y.dtype:
        raise UserError(
            f"{where}: samples of shape {tuple(test_x.shape[1:])} with {_kind(test_y)}, "
            f"expected {tuple(x.shape[1:])} with {_kind(y)} as in the training data"
        )
    return Dataset(tensor_split(x, y), tensor_split(test_x, test_y), describe(x, torch.cat([y, test_y])))


def _kind(y: Tensor) -> str:
    return "classes" if y.dtype == torch.int64 else f"{y.shape[1]} target values"

"""From an Arrow table to a data set: choosing columns, checking them, and scaling them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hvd_train.data._source import Array, extra, split
from hvd_train.data.base import Dataset, describe
from hvd_train.errors import UserError, nearest

Task = Literal["auto", "classification", "regression"]


def dataset(
    table: Any,
    where: str,
    *,
    target: str,
    features: list[str],
    task: Task,
    standardise: bool,
    test_fraction: float,
    seed: int,
) -> Dataset:
    """The rows of a `pyarrow.Table` as samples; UserError, beginning with `where`, for unusable columns."""
    inputs = features or [name for name in table.column_names if name != target]
    _check(table, [target, *inputs], where)
    x = np.stack([_numbers(table[name], name, where) for name in inputs], axis=1)
    y = _targets(table[target], target, task, where)
    train, test = split(torch.from_numpy(x), torch.from_numpy(y), test_fraction, seed, where)
    mean, deviation = _moments(train.x) if standardise else (0.0, 1.0)
    # In float32 only after scaling: times, for example, would lose their last digits before it.
    train, test = (replace(part, x=((part.x - mean) / deviation).float()) for part in (train, test))
    return Dataset(train, test, describe(train.x, torch.cat([train.y, test.y])))


def _check(table: Any, names: list[str], where: str) -> None:
    if len(set(table.column_names)) < table.num_columns:
        raise UserError(f"{where}: columns {', '.join(table.column_names)}, expected different names")
    if table.num_rows == 0 or len(names) < 2:
        raise UserError(f"{where}: {table.num_rows} rows, {len(names) - 1} features, expected at least one of each")
    if names[0] in names[1:]:
        raise UserError(f"{where}: the target '{names[0]}' is among the features")
    for name in names:
        if name not in table.column_names:
            raise UserError(f"{where}: no column '{name}'{nearest(name, table.column_names)}")
        missing = table[name].is_null(nan_is_null=True).to_numpy().sum()
        if missing:
            raise UserError(f"{where}: {missing} missing values in column '{name}', expected none")


def _numbers(column: Any, name: str, where: str) -> Array:
    types = extra("pyarrow").types
    numeric = (types.is_boolean, types.is_integer, types.is_floating, types.is_decimal)
    if not any(is_kind(column.type) for is_kind in numeric):
        raise UserError(f"{where}: column '{name}' is of type {column.type}, expected numbers")
    return np.asarray(column.to_numpy(), np.float64)


def _targets(column: Any, name: str, task: Task, where: str) -> Array:
    """Classes (int64), numbered in sorted order, or numbers of shape (n, 1)."""
    types = extra("pyarrow").types
    is_real = types.is_floating(column.type) or types.is_decimal(column.type)
    if task == "regression" or (task == "auto" and is_real):
        return _numbers(column, name, where)[:, None].astype(np.float32)
    if types.is_nested(column.type):
        raise UserError(f"{where}: column '{name}' is of type {column.type}, expected classes or numbers")
    return np.unique(np.asarray(column.to_pylist()), return_inverse=True)[1]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column, 1 for a constant one."""
    deviation = x.std(0, correction=0)
    return x.mean(0), torch.where(deviation == 0, 1, deviation)

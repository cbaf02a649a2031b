"""The values of a column of a table as arrays: numbers, categories or targets."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.files import import_extra
from hvd_train.data.fitted import numbered
from hvd_train.data.tables.encoding import Category, Number
from hvd_train.data.tables.table import Categorical, Table, Task
from hvd_train.data.value_checks import Array, finite
from hvd_train.errors import UserError

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_OTHER_NOTATION = re.compile(r"[-+]?\d{1,3}([.,' \u00a0\u202f]\d{3})*([.,]\d+)?|[-+]?\d+,\d+")
"""Numbers with a decimal comma or with thousands separators."""


def inputs(table: Table, name: str, categorical: Categorical) -> Array:
    """Return numbers in float64, or categories as objects.

    A missing value is NaN, or None.

    Raise UserError for values that are neither, and for texts if `categorical` is `error`.
    """
    column, types = table.arrow[name], import_extra("pyarrow").types
    if is_number(column.type):
        return _numbers(table, name)
    if types.is_null(column.type):
        raise UserError(f"{table.where}: column '{name}' holds no values; leave it out of data.features")
    values = _texts(table, name) if _is_text(column.type) or types.is_dictionary(column.type) else None
    if values is not None:
        _refuse_text_among_numbers(table, name, values)
        if categorical != "error":
            return values
    what = f"{table.place(name, 0)}: {_quoted(column, 0)} is of type {column.type}, expected numbers"
    way = "data.categorical: onehot or code encodes texts" if values is not None else "turn it into numbers"
    raise UserError(f"{what}; {way}, or data.features leaves the column out")


def targets(table: Table, name: str, task: Task) -> tuple[Tensor, list[Any]]:
    """Return classes (int64), numbered in sorted order, and their names.

    Or numbers of shape (n, 1) and no names.
    """
    column, types = table.arrow[name], import_extra("pyarrow").types
    real = types.is_floating(column.type) or types.is_decimal(column.type)
    if task == "regression" or (task == "auto" and real):
        if not is_number(column.type):
            what = f"{table.place(name, 0)}: {_quoted(column, 0)} is of type {column.type}"
            raise UserError(f"{what}, expected numbers")
        return torch.from_numpy(finite(_numbers(table, name)[:, None], table.places(name))), []
    if is_number(column.type):
        values = _numbers(table, name) if real else np.asarray(column.to_pylist())
    elif _is_text(column.type) or types.is_dictionary(column.type):
        values = _texts(table, name)
        if task == "auto":
            _refuse_text_among_numbers(table, name, values)
    else:
        what = f"{table.place(name, 0)}: {_quoted(column, 0)} is of type {column.type}"
        raise UserError(f"{what}, expected classes or numbers")
    kinds, codes = np.unique(values, return_inverse=True)
    return torch.from_numpy(codes.astype(np.int64)), kinds.tolist()


def known_inputs(table: Table, column: Number | Category) -> Array:
    """Return the values of a fitted column, as `inputs` does; UserError for another type."""
    arrow = table.arrow[column.name]
    numbers = is_number(arrow.type) or import_extra("pyarrow").types.is_null(arrow.type)
    if isinstance(column, Category) and (not numbers or not all(isinstance(c, str) for c in column.categories)):
        return _texts(table, column.name)
    if isinstance(column, Category) or not numbers:
        expected = "texts" if isinstance(column, Category) else "numbers"
        what = f"{table.place(column.name, 0)}: {_quoted(arrow, 0)} is of type {arrow.type}"
        raise UserError(f"{what}, expected {expected} as in training")
    return _numbers(table, column.name)


def known_targets(table: Table, name: str, classes: list[Any] | None) -> tuple[Tensor, list[Any]]:
    """Return targets as `targets` does: numbers, or the numbers of `classes`.

    Raise UserError for a value that is no class, or no number.
    """
    if classes is None:
        return targets(table, name, "regression")
    values = np.empty(len(table.rows), object)
    values[:] = table.arrow[name].to_pylist()
    return torch.tensor(numbered(values, classes, table.places(name)), dtype=torch.int64), classes


def is_number(kind: Any) -> bool:
    """Return True for a type of pyarrow whose values are numbers or truth values."""
    types = import_extra("pyarrow").types
    return any(test(kind) for test in (types.is_boolean, types.is_integer, types.is_floating, types.is_decimal))


def _is_text(kind: Any) -> bool:
    return str(kind) in {"string", "large_string", "string_view", "binary", "large_binary"}


def _numbers(table: Table, name: str) -> Array:
    values: Array = np.asarray(table.arrow[name].to_numpy(), np.float64)
    infinite = np.isinf(values)
    if infinite.any():
        row = int(infinite.argmax())
        raise UserError(f"{table.place(name, row)}: found {values[row]}, expected a finite number")
    return values


def _texts(table: Table, name: str) -> Array:
    """Return values as objects.

    Raise UserError for bytes that are not UTF-8, and for categories without a JSON type.
    """
    values = np.empty(len(table.rows), object)
    values[:] = table.arrow[name].to_pylist()
    for row, value in enumerate(values):
        if isinstance(value, bytes):
            raise UserError(f"{table.place(name, row)}: {value!r} is not text in UTF-8")
        if not isinstance(value, str | bool | int | float | None):
            raise UserError(f"{table.place(name, row)}: {value} is of type {table.arrow[name].type}, expected texts")
    return values


def _refuse_text_among_numbers(table: Table, name: str, values: Array) -> None:
    """Raise UserError for numbers in another notation, and for few texts among many numbers."""
    texts = [(row, value.strip()) for row, value in enumerate(values) if isinstance(value, str)]
    other = [(row, text) for row, text in texts if not NUMBER.fullmatch(text)]
    if not other or not texts:
        return
    row, text = next(((r, t) for r, t in other if not _OTHER_NOTATION.fullmatch(t)), other[0])
    if all(_OTHER_NOTATION.fullmatch(t) for _, t in other):
        raise UserError(
            f"{table.place(name, row)}: '{text}' is no number, expected one such as 1234.5: a point before decimals "
            "(data.decimal of a CSV file chooses the comma), and nothing between thousands"
        )
    if len(other) * 2 < len(texts):
        raise UserError(
            f"{table.place(name, row)}: '{text}' is no number, though {len(texts) - len(other)} of {len(texts)} values "
            "are; expected a number, or nothing where it is missing"
        )


def _quoted(column: Any, row: int) -> str:
    text = str(column[row].as_py())
    return f"'{text[:40]}...'" if len(text) > 40 else f"'{text}'"

"""From an Arrow table to a data set: choosing columns, checking them, and encoding them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hvd_train.data import _columns
from hvd_train.data._check import SHOWN, Array, Place, finite, inexact, remarks
from hvd_train.data._source import extra, none_left
from hvd_train.data.base import Dataset, describe, held_out_rows, tensor_split
from hvd_train.errors import UserError, nearest

Task = Literal["auto", "classification", "regression"]
Categorical = Literal["error", "onehot", "code"]
Missing = Literal["error", "mean", "drop"]

LEAST_COUNTED = 10
"""Rows from which on consecutive integers are taken for a count of the rows."""

_UNNAMED = re.compile(r"|Unnamed: \d+(\.\d+)*|__index_level_\d+__")
"""Names that pandas gives to an index, and that a CSV file of it has."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_FOREIGN = re.compile(r"[-+]?\d{1,3}([.,' \u00a0\u202f]\d{3})*([.,]\d+)?|[-+]?\d+,\d+")


@dataclass(frozen=True)
class Options:
    """What `create` of a table's source was told."""

    target: str
    features: list[str]
    task: Task
    standardise: bool
    categorical: Categorical
    missing: Missing
    test_fraction: float
    seed: int


@dataclass(frozen=True)
class Table:
    """Rows of a file: `rows` are their numbers in it, of which `at` makes what messages say."""

    arrow: Any
    where: str
    at: Callable[[int], str]
    rows: Array

    def place(self, column: str, row: int) -> str:
        return f"{self.where}: column '{column}', {self.at(int(self.rows[row]))}"

    def places(self, column: str, rows: Array | None = None) -> Place:
        """Places of an array with one entry, or row, for each of `rows`, or of all rows."""
        return lambda index: self.place(column, index[0] if rows is None else int(rows[index[0]]))


def dataset(arrow: Any, where: str, at: Callable[[int], str], options: Options) -> Dataset:
    """The rows of a `pyarrow.Table` as samples; UserError, beginning with `where`, for unusable columns.

    What turns columns into inputs is fitted on the training rows.
    """
    whole = Table(arrow, where, at, np.arange(arrow.num_rows))
    names, warnings = _features(whole, options)
    _check(whole, [options.target, *names])
    table, dropped = _complete(whole, [options.target, *names], options)
    y, kinds = _targets(table, options.target, options.task)
    values = [_values(table, name, options.categorical) for name in names]
    train, test = (part.numpy() for part in held_out_rows(len(table.rows), options.test_fraction, options.seed))
    if not len(train):
        raise none_left(options.test_fraction, len(table.rows), where)
    columns = [_fitted(table, n, v, train, options) for n, v in zip(names, values, strict=True)]
    encoded = [c.encode(v) for c, v in zip(columns, values, strict=True)]
    x = np.concatenate([finite(e, table.places(n)) for n, e in zip(names, encoded, strict=True)], axis=1)
    training, held_out = (tensor_split(torch.from_numpy(x[part]), y[torch.from_numpy(part)]) for part in (train, test))
    spec = describe(training.x, y)
    told = f"{where}: column '{options.target}'"
    warnings += [
        *dropped,
        *_about_inputs(table, columns, values, train, test),
        *_about_targets(y, kinds, told, options.task),
        *remarks(training.y, held_out.y, spec.outputs, told, kinds),
    ]
    fitted = {"columns": [c.document for c in columns], "target": {"name": options.target, "classes": kinds or None}}
    return Dataset(training, held_out, spec, tuple(warnings), fitted)


def _features(table: Table, options: Options) -> tuple[list[str], list[str]]:
    """Names of the inputs, and warnings about columns that are left out since they only number the rows."""
    if options.features:
        return options.features, []
    others = [name for name in table.arrow.column_names if name != options.target]
    index = {name: why for name in others if (why := _numbers_rows(table.arrow, name))}
    return [name for name in others if name not in index], [
        f"{table.where}: column '{name}' {why}, so it is no input (data.features names the inputs)"
        for name, why in index.items()
    ]


def _numbers_rows(arrow: Any, name: str) -> str | None:
    """Why the column is an index of the rows; None where it is not."""
    if name in _pandas_index(arrow):
        return "is the index of a pandas table"
    if _UNNAMED.fullmatch(name):
        return "has no name of its own"
    if arrow.column_names.count(name) > 1:
        return None
    column = arrow[name]
    if len(column) < LEAST_COUNTED or column.null_count or not extra("pyarrow").types.is_integer(column.type):
        return None
    values = column.to_numpy()
    first = int(values[0])
    if first in {0, 1} and np.array_equal(values, np.arange(first, first + len(values))):
        return f"counts the rows from {first} to {values[-1]}"
    return None


def _pandas_index(arrow: Any) -> set[str]:
    """Columns that hold the index of the pandas table that was written."""
    try:
        known = arrow.schema.pandas_metadata or {}
        return {name for name in known.get("index_columns", []) if isinstance(name, str)}
    except (ValueError, AttributeError):  # metadata that another program wrote
        return set()


def _check(table: Table, names: list[str]) -> None:
    known = table.arrow.column_names
    if len(set(known)) < len(known):
        twice = next(name for name in known if known.count(name) > 1)
        raise UserError(f"{table.where}: columns {', '.join(known)}, expected different names: '{twice}' comes twice")
    for name in names:
        if name not in known:
            numbers = all(_NUMBER.fullmatch(word.strip()) for word in known)
            hint = "; the first line holds numbers, expected the names of the columns" if numbers else ""
            raise UserError(f"{table.where}: no column '{name}'{nearest(name, known)}{hint}")
    if not len(table.rows) or len(names) < 2:
        raise UserError(
            f"{table.where}: {len(table.rows)} rows, {len(names) - 1} features, expected at least one of each"
        )
    if names[0] in names[1:]:
        raise UserError(f"{table.where}: the target '{names[0]}' is among the features")
    again = next((a for a, b in pairwise(sorted(names[1:])) if a == b), None)
    if again is not None:
        raise UserError(f"{table.where}: the feature '{again}' is named twice")


def _complete(table: Table, names: list[str], options: Options) -> tuple[Table, list[str]]:
    """The rows to use, after `missing`, and a warning if some are dropped."""
    gaps = {name: _null(table.arrow[name]) for name in names}
    if options.missing == "drop":
        return _dropped(table, np.any(list(gaps.values()), axis=0))
    for name, gap in gaps.items():
        if gap.any() and (options.missing == "error" or name == options.target):
            cannot = "; a target cannot be filled in" if options.missing == "mean" else ""
            ways = "drop" if name == options.target else "mean or drop"
            raise UserError(
                f"{table.place(name, int(gap.argmax()))}: {gap.sum()} missing values in column '{name}', of which this is the "
                f"first{cannot}; expected none, or data.missing: {ways}"
            )
    return table, []


def _null(column: Any) -> Array:
    mask: Array = np.asarray(column.is_null(nan_is_null=True).to_numpy())
    return mask


def _dropped(table: Table, gap: Array) -> tuple[Table, list[str]]:
    if not gap.any():
        return table, []
    if gap.all():
        raise UserError(f"{table.where}: all {len(gap)} rows have missing values, so data.missing: drop leaves none")
    first = table.at(int(gap.argmax()))
    kept = Table(table.arrow.filter(extra("pyarrow").array(~gap)), table.where, table.at, table.rows[~gap])
    return kept, [f"{table.where}: dropped {gap.sum()} of {len(gap)} rows with missing values, the first in {first}"]


def _values(table: Table, name: str, categorical: Categorical) -> Array:
    """Numbers in float64, NaN where one is missing, or categories as objects, None where one is missing."""
    column, types = table.arrow[name], extra("pyarrow").types
    if _is_number(column.type):
        return _numbers(table, name)
    if types.is_null(column.type):
        raise UserError(f"{table.where}: column '{name}' holds no values; leave it out of data.features")
    values = _texts(table, name) if _is_text(column.type) or types.is_dictionary(column.type) else None
    if values is not None:
        _refuse_text_among_numbers(table, name, values)
        if categorical != "error":
            return values
    what = f"{table.place(name, 0)}: {_shown(column, 0)} is of type {column.type}, expected numbers"
    way = "data.categorical: onehot or code encodes texts" if values is not None else "turn it into numbers"
    raise UserError(f"{what}; {way}, or data.features leaves the column out")


def _is_number(kind: Any) -> bool:
    types = extra("pyarrow").types
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
    """Values as objects; UserError for bytes that are not UTF-8, and for categories that JSON does not know."""
    values = np.empty(len(table.rows), object)
    values[:] = table.arrow[name].to_pylist()
    for row, value in enumerate(values):
        if isinstance(value, bytes):
            raise UserError(f"{table.place(name, row)}: {value!r} is not text in UTF-8")
        if not isinstance(value, str | bool | int | float | None):
            raise UserError(f"{table.place(name, row)}: {value} is of type {table.arrow[name].type}, expected texts")
    return values


def _refuse_text_among_numbers(table: Table, name: str, values: Array) -> None:
    """UserError where texts are numbers in another notation, or where a few of them spoil a column of numbers."""
    texts = [(row, value.strip()) for row, value in enumerate(values) if isinstance(value, str)]
    other = [(row, text) for row, text in texts if not _NUMBER.fullmatch(text)]
    if not other or not texts:
        return
    row, text = next(((r, t) for r, t in other if not _FOREIGN.fullmatch(t)), other[0])
    if all(_FOREIGN.fullmatch(t) for _, t in other):
        raise UserError(
            f"{table.place(name, row)}: '{text}' is no number, expected one such as 1234.5: a point before decimals "
            "(data.decimal of a CSV file chooses the comma), and nothing between thousands"
        )
    if len(other) * 2 < len(texts):
        raise UserError(
            f"{table.place(name, row)}: '{text}' is no number, though {len(texts) - len(other)} of {len(texts)} values "
            "are; expected a number, or nothing where it is missing"
        )


def _shown(column: Any, row: int) -> str:
    text = str(column[row].as_py())
    return f"'{text[:40]}...'" if len(text) > 40 else f"'{text}'"


def _fitted(table: Table, name: str, values: Array, train: Array, options: Options) -> _columns.Column:
    known = values[train]
    if values.dtype == object:
        assert options.categorical != "error"
        return _columns.category(name, known, options.categorical)
    if np.isnan(known).all():
        raise UserError(f"{table.where}: column '{name}' has no value in any training row; leave it out")
    fill = options.missing == "mean"
    return _columns.number(name, known, standardise=options.standardise, fill=fill)


def _targets(table: Table, name: str, task: Task) -> tuple[Tensor, list[Any]]:
    """Classes (int64), numbered in sorted order, and what they are; or numbers of shape (n, 1)."""
    column, types = table.arrow[name], extra("pyarrow").types
    real = types.is_floating(column.type) or types.is_decimal(column.type)
    if task == "regression" or (task == "auto" and real):
        if not _is_number(column.type):
            what = f"{table.place(name, 0)}: {_shown(column, 0)} is of type {column.type}"
            raise UserError(f"{what}, expected numbers")
        return torch.from_numpy(finite(_numbers(table, name)[:, None], table.places(name))), []
    if _is_number(column.type):
        values = _numbers(table, name) if real else np.asarray(column.to_pylist())
    elif _is_text(column.type) or types.is_dictionary(column.type):
        values = _texts(table, name)
        if task == "auto":
            _refuse_text_among_numbers(table, name, values)
    else:
        what = f"{table.place(name, 0)}: {_shown(column, 0)} is of type {column.type}"
        raise UserError(f"{what}, expected classes or numbers")
    kinds, codes = np.unique(values, return_inverse=True)
    return torch.from_numpy(codes.astype(np.int64)), kinds.tolist()


def _about_targets(y: Tensor, kinds: list[Any], told: str, task: Task) -> Iterator[str]:
    if task == "auto" and len(kinds) > max(20, len(y) // 2):
        yield f"{told}: {len(kinds)} classes among {len(y)} rows; data.task: regression predicts a quantity"


def _about_inputs(
    table: Table, columns: Sequence[_columns.Column], values: Sequence[Array], train: Array, test: Array
) -> Iterator[str]:
    """Warnings about columns that are constant, that float32 cannot hold, or of categories met in held-out rows alone."""
    constant = []
    for column, of in zip(columns, values, strict=True):
        known = of[train]
        if len(train) > 1 and len(set(known[:2].tolist())) == 1 and (known == known[0]).all():
            constant.append(column.document["name"])
        elif isinstance(column, _columns.Number):
            yield from _rounded(table, column, of)
        if isinstance(column, _columns.Category):
            yield from _unknown(table, column, of, train, test)
    if constant:
        more = f" and {len(constant) - SHOWN} more" if len(constant) > SHOWN else ""
        names = ", ".join(f"'{name}'" for name in constant[:SHOWN]) + more
        yield f"{table.where}: column {names}: the same value in all {len(train)} training rows"


def _rounded(table: Table, column: _columns.Number, values: Array) -> Iterator[str]:
    exact = table.arrow[column.name]
    kind = "float64" if column.deviation != 1.0 else "float32"
    whole = extra("pyarrow").types.is_integer(exact.type) and not exact.null_count
    warning = inexact(exact.to_numpy() if whole else column.encode(values)[:, 0], kind, table.places(column.name))
    if warning:
        yield warning


def _unknown(table: Table, column: _columns.Category, values: Array, train: Array, test: Array) -> Iterator[str]:
    known = [value for value in values[train] if value is not None]
    if len(known) >= LEAST_COUNTED and len(column.categories) == len(known):
        yield f"{table.where}: column '{column.name}' is different in each training row, which tells nothing of other rows"
    encoded = column.codes(values[test]) > 0
    rows = [row for row, is_known in zip(test, encoded, strict=True) if not is_known and values[row] is not None]
    if rows:
        first = f"{table.place(column.name, rows[0])}: '{values[rows[0]]}'"
        as_ = "a row of zeros" if column.encoding == "onehot" else "the code 0"
        yield f"{first} is in no training row; {len(rows)} held-out rows with such values have {as_} there"

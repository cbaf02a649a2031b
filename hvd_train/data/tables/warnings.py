"""Warnings about the columns of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from hvd_train.data.files import import_extra
from hvd_train.data.tables.encoding import Category, Column, Number
from hvd_train.data.tables.table import Table, Task
from hvd_train.data.target_warnings import shortened
from hvd_train.data.value_checks import Array, precision_loss

FEWEST_DIFFERENT = 10
"""The fewest training rows in which categories that are all different get a warning."""


def many_classes(y: Tensor, kinds: list[Any], target: str, task: Task) -> Iterator[str]:
    """Warn about a target that looks like a quantity: nearly as many classes as rows."""
    if task == "auto" and len(kinds) > max(20, len(y) // 2):
        yield f"{target}: {len(kinds)} classes among {len(y)} rows; data.task: regression predicts a quantity"


def about_inputs(
    table: Table, columns: Sequence[Column], values: Sequence[Array], train: Array, test: Array
) -> Iterator[str]:
    """Warn about constant columns, lossy numbers, and categories that no training row has."""
    constant = []
    for column, of in zip(columns, values, strict=True):
        known = of[train]
        if len(train) > 1 and len(set(known[:2].tolist())) == 1 and (known == known[0]).all():
            constant.append(column.document["name"])
        elif isinstance(column, Number):
            yield from _rounded(table, column, of)
        if isinstance(column, Category):
            yield from _unknown(table, column, of, train, test)
    if constant:
        names = shortened([f"'{name}'" for name in constant])
        yield f"{table.where}: column {names}: the same value in all {len(train)} training rows"


def _rounded(table: Table, column: Number, values: Array) -> Iterator[str]:
    exact = table.arrow[column.name]
    kind = "float64" if column.deviation != 1.0 else "float32"
    whole = import_extra("pyarrow").types.is_integer(exact.type) and not exact.null_count
    numbers = exact.to_numpy() if whole else column.encode(values)[:, 0]
    warning = precision_loss(numbers, kind, table.places(column.name))
    if warning:
        yield warning


def _unknown(table: Table, column: Category, values: Array, train: Array, test: Array) -> Iterator[str]:
    known = [value for value in values[train] if value is not None]
    if len(known) >= FEWEST_DIFFERENT and len(column.categories) == len(known):
        yield f"{table.where}: column '{column.name}' is different in each training row, which tells nothing of other rows"
    encoded = column.codes(values[test]) > 0
    rows = [row for row, is_known in zip(test, encoded, strict=True) if not is_known and values[row] is not None]
    if rows:
        first = f"{table.place(column.name, rows[0])}: '{values[rows[0]]}'"
        as_ = "a row of zeros" if column.encoding == "onehot" else "the code 0"
        yield f"{first} is in no training row; {len(rows)} held-out rows with such values have {as_} there"

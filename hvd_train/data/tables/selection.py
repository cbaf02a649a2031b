"""Choose the columns and the rows of a table that become samples."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from hvd_train.data.files import import_extra
from hvd_train.data.tables.table import Table, TableOptions
from hvd_train.data.tables.values import NUMBER
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError, nearest

FEWEST_COUNTED = 10
"""The fewest rows in which consecutive integers count as row numbers."""

_UNNAMED = re.compile(r"|Unnamed: \d+(\.\d+)*|__index_level_\d+__")
"""Names that pandas gives to an index, and that a CSV file of it has."""


def choose_features(table: Table, options: TableOptions) -> tuple[list[str], list[str]]:
    """Return the names of the inputs, and warnings about columns that only number the rows."""
    if options.features:
        return options.features, []
    others = [name for name in table.arrow.column_names if name != options.target]
    index = {name: why for name in others if (why := _numbers_rows(table.arrow, name))}
    return [name for name in others if name not in index], [
        f"{table.where}: column '{name}' {why}, so it is no input (data.features names the inputs)"
        for name, why in index.items()
    ]


def check_columns(table: Table, target: str, features: list[str]) -> None:
    """Raise UserError for unknown or duplicate names, and for a table without rows or features."""
    known = table.arrow.column_names
    if len(set(known)) < len(known):
        twice = next(name for name in known if known.count(name) > 1)
        raise UserError(f"{table.where}: columns {', '.join(known)}, expected different names: '{twice}' comes twice")
    for name in [target, *features]:
        if name not in known:
            numbers = all(NUMBER.fullmatch(word.strip()) for word in known)
            hint = "; the first line holds numbers, expected the names of the columns" if numbers else ""
            raise UserError(f"{table.where}: no column '{name}'{nearest(name, known)}{hint}")
    if not len(table.rows) or not features:
        raise UserError(
            f"{table.where}: {len(table.rows)} rows, {len(features)} features, expected at least one of each"
        )
    if target in features:
        raise UserError(f"{table.where}: the target '{target}' is among the features")
    again = next((a for a, b in pairwise(sorted(features)) if a == b), None)
    if again is not None:
        raise UserError(f"{table.where}: the feature '{again}' is named twice")


def without_gaps(table: Table, target: str, features: list[str], options: TableOptions) -> tuple[Table, list[str]]:
    """Return the rows to use according to `options.missing`, and a warning if rows are dropped."""
    gaps = {name: is_null(table.arrow[name]) for name in [target, *features]}
    if options.missing == "drop":
        return _dropped(table, np.any(list(gaps.values()), axis=0))
    for name, gap in gaps.items():
        if gap.any() and (options.missing == "error" or name == target):
            cannot = "; a target cannot be filled in" if options.missing == "mean" else ""
            ways = "drop" if name == target else "mean or drop"
            raise UserError(
                f"{table.place(name, int(gap.argmax()))}: {gap.sum()} missing values in column '{name}', of which this is the "
                f"first{cannot}; expected none, or data.missing: {ways}"
            )
    return table, []


def _numbers_rows(arrow: Any, name: str) -> str | None:
    """Return why the column is an index of the rows; None if it is not."""
    if name in _pandas_index(arrow):
        return "is the index of a pandas table"
    if _UNNAMED.fullmatch(name):
        return "has no name of its own"
    if arrow.column_names.count(name) > 1:
        return None
    column = arrow[name]
    if len(column) < FEWEST_COUNTED or column.null_count or not import_extra("pyarrow").types.is_integer(column.type):
        return None
    values = column.to_numpy()
    first = int(values[0])
    if first in {0, 1} and np.array_equal(values, np.arange(first, first + len(values))):
        return f"counts the rows from {first} to {values[-1]}"
    return None


def _pandas_index(arrow: Any) -> set[str]:
    """Return the columns that hold the index of the pandas table in the file."""
    try:
        known = arrow.schema.pandas_metadata or {}
        return {name for name in known.get("index_columns", []) if isinstance(name, str)}
    except (ValueError, AttributeError):  # metadata that another program wrote
        return set()


def is_null(column: Any) -> Array:
    """Return a mask of the missing values: null and NaN."""
    mask: Array = np.asarray(column.is_null(nan_is_null=True).to_numpy())
    return mask


def _dropped(table: Table, gap: Array) -> tuple[Table, list[str]]:
    if not gap.any():
        return table, []
    if gap.all():
        raise UserError(f"{table.where}: all {len(gap)} rows have missing values, so data.missing: drop leaves none")
    where, first = table.located(int(gap.argmax()))
    kept = replace(table, arrow=table.arrow.filter(import_extra("pyarrow").array(~gap)), rows=table.rows[~gap])
    return kept, [f"{where}: dropped {gap.sum()} of {len(gap)} rows with missing values, the first in {first}"]

"""Join the tables of several files, whose columns have the same names and like types."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from hvd_train.data.files import import_extra
from hvd_train.data.tables.selection import check_columns
from hvd_train.data.tables.table import Table, TableFile
from hvd_train.data.tables.values import is_number
from hvd_train.errors import UserError


def alone(file: TableFile) -> Table:
    """Return the rows of one file."""
    arrow = file.read()
    return Table(arrow, [file], [0], np.arange(arrow.num_rows))


def joined(tables: Sequence[Table], target: str, features: list[str]) -> Table:
    """Return the rows of all tables.

    Raise UserError for a column that is missing, or of another type than in the first table.
    """
    for table in tables:
        check_columns(table, target, features)
    if len(tables) == 1:
        return tables[0]
    for table in tables[1:]:
        _check_types(tables[0], table, target, features)
    starts = list(accumulate((len(table.rows) for table in tables), initial=0))
    columns = [table.arrow.select([target, *features]).replace_schema_metadata(None) for table in tables]
    arrow = import_extra("pyarrow").concat_tables(columns, promote_options="permissive")
    return Table(arrow, [file for table in tables for file in table.files], starts[:-1], np.arange(starts[-1]))


def _check_types(first: Table, other: Table, target: str, features: list[str]) -> None:
    for name in [target, *features]:
        expected, found = first.arrow[name].type, other.arrow[name].type
        if not _alike(expected, found, may_round=name != target):
            raise UserError(
                f"{other.where}: column '{name}' is of type {found}, expected {expected} as in {first.where}"
            )


def _alike(expected: Any, found: Any, may_round: bool) -> bool:
    """Return True if values of both types can be joined, and a target keeps its meaning."""
    types = import_extra("pyarrow").types
    if expected == found or types.is_null(expected) or types.is_null(found):
        return True
    same = types.is_integer(expected) == types.is_integer(found)
    decimal = (
        types.is_decimal(expected) or types.is_decimal(found) or types.is_boolean(expected) or types.is_boolean(found)
    )
    return is_number(expected) and is_number(found) and not decimal and (same or may_round)

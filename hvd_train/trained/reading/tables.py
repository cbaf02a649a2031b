"""Columns of rows, and the rows of table files in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from hvd_train.data.tables.encoding import Category
from hvd_train.data.tables.endings import LINES, suffix
from hvd_train.data.tables.values import is_number
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError
from hvd_train.trained.input import Block, Place
from hvd_train.trained.reading import arrow, csv, header, lines

SUFFIXES = (*csv.SUFFIXES, *arrow.SUFFIXES, *LINES)
Values = Any
"""The values of a column: a list, or a `pyarrow.Array`."""


def by_column(records: Any, place: Place) -> Mapping[str, Callable[[], Values]]:
    """Return functions that return the columns of rows, by name; the rows are dicts or a `RecordBatch`."""
    if not isinstance(records, list | tuple):
        return {name: partial(records.column, i) for i, name in enumerate(records.schema.names)}
    for number, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise UserError(
                f"{place(number)}: found {type(record).__name__}, expected an object with a value for each column"
            )
    return {name: partial(_of_dicts, records, name, place) for name in (records[0] if records else ())}


def _of_dicts(records: Sequence[Mapping[str, Any]], name: str, place: Place) -> list[Any]:
    for number, record in enumerate(records):
        if name not in record:
            raise UserError(f"{place(number)}: {header.lacks(name, record)}")
    return [record[name] for record in records]


def numbers(values: Values, name: str, place: Place) -> Array:
    """Return a column of numbers in float64, NaN where a value is missing; UserError for another value."""
    if isinstance(values, list):
        return np.array([_number(value, name, partial(place, i)) for i, value in enumerate(values)], np.float64)
    if not is_number(values.type) and values.null_count < len(values):
        row = int(np.asarray(values.is_valid()).argmax())
        raise UserError(
            f"{place(row)}: column '{name}': '{value(values, row)}' is no number, expected numbers as in training"
        )
    found: Array = np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
    if np.isinf(found).any():
        row = int(np.isinf(found).argmax())
        raise UserError(f"{place(row)}: column '{name}': found {found[row]}, expected a finite number")
    return found


def _number(value: Any, name: str, place: Callable[[], str]) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, int | float) and abs(value) < float("inf"):
        return float(value)
    if isinstance(value, float) and value != value:
        return value
    shown = f"'{value}'" if isinstance(value, str) else str(value)
    raise UserError(f"{place()}: column '{name}': {shown} is no number, expected a finite number as in training")


def codes(values: Values, of: Category) -> tuple[Array, Array]:
    """Return the code of each value, 0 for one that is no category; and which values are missing."""
    if isinstance(values, list):
        return of.codes(map(_hashable, values)), np.array([value is None for value in values], bool)
    encoded = values if hasattr(values, "dictionary") else values.dictionary_encode()
    is_null = np.asarray(encoded.is_null())
    indices = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy(zero_copy_only=False)
    return np.append(of.codes(encoded.dictionary.to_pylist()), 0)[indices], is_null


def _hashable(value: Any) -> Any:
    """Return `value`; a text for lists and objects, which are no categories."""
    return value if value is None or isinstance(value, str | int | float) else str(value)


def value(values: Values, row: int) -> Any:
    """Return one value of a column."""
    return values[row] if isinstance(values, list) else values[row].as_py()


def blocks(
    paths: Sequence[str], kinds: Mapping[str, str], keep: Sequence[str], options: Mapping[str, Any]
) -> Iterator[Block]:
    """Yield blocks of the rows of files, in order; their endings say what they are, and stdin is CSV.

    `kinds` has the columns that are inputs, as `csv.blocks` takes them. `options` are those of the
    data source.
    """
    for path in paths:
        ending = suffix(path)
        if ending in LINES:
            yield from (lines.keep(block, keep) for block in lines.json_blocks([path]))
        elif ending in arrow.SUFFIXES:
            yield from arrow.blocks(path, [*kinds], keep)
        elif ending in csv.SUFFIXES or path == lines.STDIN:
            yield from csv.blocks(path, kinds, keep, options.get("delimiter", ","), options.get("decimal", "."))
        else:
            raise UserError(f"{path}: expected a table: {', '.join(SUFFIXES)}, or - for CSV on stdin")

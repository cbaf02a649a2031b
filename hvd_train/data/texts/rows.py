"""Read the texts and the labels of a file: CSV, TSV, JSON Lines, Parquet or Arrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hvd_train.data.files import import_extra
from hvd_train.data.memory.node import ALONE
from hvd_train.data.records.fields import pick
from hvd_train.data.records.json_lines import open_texts
from hvd_train.data.records.lines import Text, TextLines
from hvd_train.data.records.parse import parse_line
from hvd_train.data.sources import csv, parquet
from hvd_train.data.tables.endings import ARROW, COMMAS, LINES, delimiter_of, suffix
from hvd_train.data.tables.table import TableFile
from hvd_train.errors import UserError, nearest

SUFFIXES = (*COMMAS, *LINES, *ARROW)

Row = tuple[str | None, ...]
"""The texts of a row; None where one is missing."""


@dataclass(frozen=True)
class Rows:
    """The rows of one file."""

    name: str
    """The name of the file in messages."""
    texts: Sequence[Row]
    labels: Sequence[Any]
    """The label of each row, None where it is missing."""
    place: Callable[[int], str]
    """Returns the place of a row for messages, such as `a.csv: line 3`."""
    typed: bool
    """False: labels are texts that may stand for numbers."""


def read(file: Path, name: str, columns: Sequence[str], label: str, delimiter: str | None) -> Rows:
    """Return the texts in `columns` and the labels of `file`, which messages call `name`.

    Raise UserError for a file of an unknown ending, for one that cannot be read or has no rows, and for
    a missing column.
    """
    ending = suffix(file)
    if ending in LINES:
        return _of_lines(file, name, columns, label)
    if ending in ARROW:
        return _of_table(parquet.table(file, name), columns, label, typed=True)
    if ending in COMMAS:
        return _of_table(_csv(file, name, delimiter or delimiter_of(file)), columns, label, typed=False)
    raise UserError(f"{name}: expected a file of texts and labels: {', '.join(SUFFIXES)}, each perhaps with .gz")


def _csv(file: Path, name: str, delimiter: str) -> TableFile:
    return TableFile(name, partial(csv.read_texts, file, name, delimiter), partial(csv.place, file, delimiter))


def _of_table(table: TableFile, columns: Sequence[str], label: str, *, typed: bool) -> Rows:
    arrow = table.read()
    for column in (*columns, label):
        if column not in arrow.column_names:
            raise UserError(f"{table.where}: no column '{column}'{nearest(column, arrow.column_names)}")
    if not arrow.num_rows:
        raise _no_rows(table.where)

    def place(row: int) -> str:
        return f"{table.where}: {table.at(row)}"

    texts = [_texts(arrow[column], column, place) for column in columns]
    labels = [None if value != value else value for value in arrow[label].to_pylist()]  # NaN
    return Rows(table.where, list(zip(*texts, strict=True)), labels, place, typed)


def _texts(column: Any, name: str, place: Callable[[int], str]) -> list[str | None]:
    """Return a column of texts; UserError for another type."""
    types = import_extra("pyarrow").types
    of = column.type.value_type if types.is_dictionary(column.type) else column.type
    if not (types.is_string(of) or types.is_large_string(of) or types.is_string_view(of) or types.is_null(of)):
        raise UserError(f"{place(0)}: column '{name}' has values of type {of}, expected texts")
    found: list[str | None] = column.to_pylist()
    return found


def _of_lines(file: Path, name: str, columns: Sequence[str], label: str) -> Rows:
    (content,) = open_texts(ALONE, [file])
    text = Text(content.content, name)
    starts = text.starts()
    if not len(starts):
        raise _no_rows(name)
    lines = TextLines([text], starts, [len(starts)])
    texts, labels = [], []
    for number in range(len(lines)):
        place = partial(lines.place, number)
        record = parse_line(lines.line(number), place)
        texts.append(tuple(_text(pick(record, column, place), column, place) for column in columns))
        labels.append(pick(record, label, place))
    return Rows(name, texts, labels, lines.place, typed=True)


def _text(value: Any, key: str, place: Callable[[], str]) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise UserError(f"{place()}: '{key}': found {type(value).__name__}, expected a text")


def _no_rows(name: str) -> UserError:
    return UserError(f"{name}: no rows, expected at least one text with its label")

"""Rows of CSV files in blocks, parsed by pyarrow with bounded memory."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from hvd_train.data.files import import_extra
from hvd_train.data.sources import csv as source
from hvd_train.errors import UserError
from hvd_train.trained.input import Block
from hvd_train.trained.reading import header
from hvd_train.trained.reading.lines import STDIN, find, name_of

SUFFIXES = (".csv", ".tsv", ".txt")
BLOCK = 2**20
"""Bytes that are parsed at once."""


def blocks(
    path: str, kinds: Mapping[str, str], keep: Sequence[str], delimiter: str = ",", decimal: str = "."
) -> Iterator[Block]:
    """Yield blocks of the rows of a file or of stdin.

    `kinds` has the columns that are read: `number`, `text`, `any` for the type that the first rows
    have, or `whole` for texts in which words such as NA stand for themselves. Raise UserError for a
    file without rows, for missing columns, and for a text in a column of numbers.
    """
    file = None if path == STDIN else find(path)
    used, start = list(dict.fromkeys([*kinds, *keep])), 0
    with _opened(path, file) as stream:
        head, whole = _head(stream)
        _check_names(head, name_of(path), delimiter, kinds, keep)
        try:
            for batch in _batches(head, whole, kinds, used, delimiter, decimal):
                if batch.num_rows:
                    place = partial(_place, path, file, delimiter, start)
                    yield Block(batch, place, {name: batch.column(used.index(name)) for name in keep})
                start += batch.num_rows
        except import_extra("pyarrow").ArrowException as error:
            raise UserError(_wrong(path, file, delimiter, decimal, kinds, error)) from error
    if not start:
        raise _no_rows(name_of(path))


def _no_rows(where: str) -> UserError:
    return UserError(f"{where}: no rows below the names of the columns, expected at least one")


def _batches(
    head: bytes, whole: Any, kinds: Mapping[str, str], used: Sequence[str], delimiter: str, decimal: str
) -> Iterator[Any]:
    """Return the record batches of the columns `used`; `head` is the beginning of `whole`."""
    csv = import_extra("pyarrow.csv")
    has_words = "whole" not in kinds.values()
    convert = {"strings_can_be_null": has_words, "decimal_point": decimal, "include_columns": used}
    block = BLOCK if has_words else source.TEXT_BLOCK
    reader: Iterator[Any] = csv.open_csv(
        whole,
        read_options=csv.ReadOptions(block_size=block),
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=_types(head, convert, kinds, delimiter), **convert),
    )
    return reader


@contextlib.contextmanager
def _opened(path: str, file: Path | None) -> Iterator[IO[bytes]]:
    if file is None:
        yield sys.stdin.buffer
        return
    arrow = import_extra("pyarrow")
    try:
        with arrow.input_stream(str(file)) as stream:
            yield stream
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


class _Rest(io.RawIOBase):
    """The bytes `head`, and then those of `stream`."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head, self._stream = head, stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._head:
            found, self._head = (self._head, b"") if size < 0 else (self._head[:size], self._head[size:])
            return found
        return self._stream.read(size)


def _head(stream: IO[bytes]) -> tuple[bytes, _Rest]:
    """Return the first bytes of a stream, and the whole stream."""
    head = b""
    while len(head) < BLOCK and (found := stream.read(BLOCK - len(head))):
        head += found
    return head, _Rest(head, stream)


def _check_names(head: bytes, where: str, delimiter: str, kinds: Mapping[str, str], keep: Sequence[str]) -> None:
    """Raise UserError for a file without rows, and for columns that are missing or come twice."""
    if not head.strip():
        raise UserError(f"{where}: is empty, expected a CSV file whose first row has the names of the columns")
    line = source.first_line(head, where)
    source.check_header(line, where, delimiter)
    records = source.records(head, delimiter)
    _, names = next(records)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{where}: the column '{twice}' comes twice, expected different names")
    header.check(where, names, kinds, keep)
    if next(records, None) is None:
        raise _no_rows(where)


def _types(head: bytes, convert: Mapping[str, Any], kinds: Mapping[str, str], delimiter: str) -> dict[str, Any]:
    """Return the types of columns: of numbers float64, or bool if the first rows have truth values."""
    csv, arrow = import_extra("pyarrow.csv"), import_extra("pyarrow")
    inferred = csv.open_csv(
        io.BytesIO(head[: head.rfind(b"\n") + 1] if len(head) == BLOCK else head),
        read_options=csv.ReadOptions(block_size=len(head) + 1),
        parse_options=csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=lambda row: "skip"
        ),
        convert_options=csv.ConvertOptions(**convert),
    ).schema
    types = {name: arrow.dictionary(arrow.int32(), arrow.string()) for name, kind in kinds.items() if kind == "text"}
    numbers = [name for name, kind in kinds.items() if kind == "number"]
    types |= {name: arrow.string() for name, kind in kinds.items() if kind == "whole"}
    return types | {
        name: arrow.bool_() if arrow.types.is_boolean(inferred.field(name).type) else arrow.float64()
        for name in numbers
    }


def _place(path: str, file: Path | None, delimiter: str, start: int, row: int) -> str:
    at = f"row {start + row + 1}" if file is None else source.place(file, delimiter, start + row)
    return f"{name_of(path)}: {at}"


def _wrong(
    path: str, file: Path | None, delimiter: str, decimal: str, kinds: Mapping[str, str], error: Exception
) -> str:
    """Return what is wrong with a file that pyarrow cannot parse."""
    if file is not None:
        found = source.uneven(file, delimiter) or _no_number(file, delimiter, decimal, kinds)
        if found:
            return f"{path}: {found}"
    return f"{name_of(path)}: not a table of comma-separated values as in training: {error}"


def _no_number(file: Path, delimiter: str, decimal: str, kinds: Mapping[str, str]) -> str | None:
    """Return the first value of a column of numbers that is none; None if there is none."""
    records = source.records(file, delimiter)
    names = next(records)[1]
    columns = [(i, name) for i, name in enumerate(names) if kinds.get(name) == "number"]
    nulls = set(import_extra("pyarrow.csv").ConvertOptions().null_values)
    for line, values in records:
        for i, name in columns:
            if values[i] not in nulls and not _is_number(values[i].replace(decimal, ".")):
                return f"line {line}: column '{name}': '{values[i]}' is no number, expected a number as in training"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text

"""Rows of a CSV file with a header. One column is the target, and others are the inputs."""

from __future__ import annotations

import contextlib
import csv as csv_text
import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import (
    Annotated,
    Categorical,
    FeatureColumns,
    Field,
    HeldOutFraction,
    HeldOutSeed,
    Literal,
    MissingValues,
    Standardise,
    TableTask,
    TargetColumn,
    TestRows,
)
from hvd_train.data.base import Dataset
from hvd_train.data.files import find_file, import_extra, test_files
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.tables.dataset import dataset, text_columns
from hvd_train.data.tables.table import TableFile, TableOptions
from hvd_train.errors import UserError

HEADER = 2**20
"""Characters of the first line that are read."""
TEXT_BLOCK = 2**26
"""Bytes that are parsed at once of a file of texts, which limits a row."""
DELIMITERS = {",": "','", ";": "';'", "\t": '"\\t"', "|": "'|'"}
"""Usual delimiters, as YAML writes them."""


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    path: Annotated[str, "CSV file whose first row has the names of the columns"],
    delimiter: Annotated[str, Field(min_length=1, max_length=1), "character between two values"] = ",",
    decimal: Annotated[Literal[".", ","], "decimal separator of numbers"] = ".",
    target: TargetColumn,
    features: FeatureColumns = [],
    task: TableTask = "auto",
    standardise: Standardise = False,
    categorical: Categorical = "error",
    missing: MissingValues = "error",
    test_path: TestRows = None,
    test_fraction: HeldOutFraction = 0.2,
    seed: HeldOutSeed = 0,
) -> Dataset:
    """Return inputs of shape (n,), one or more for each column.

    Classes are numbered in sorted order. A text that no training row has becomes the code 0, or
    zeros. A column that only numbers the rows is no input unless `features` names it. Raise
    UserError for columns that are unknown, are neither numbers nor texts, or hold missing or
    infinite values.
    """
    hold_out = HoldOut(test_fraction, seed, fold)
    options = TableOptions(target, features, task, standardise, categorical, missing, hold_out)
    texts = text_columns(fitted) if fitted is not None else []
    train = table(find_file(path, "path"), path, delimiter, decimal, texts)
    tests = {name: table(file, str(file), delimiter, decimal, texts) for name, file in test_files(test_path).items()}
    return dataset(train, tests, options, node, fitted)


def table(file: Path, path: str, delimiter: str, decimal: str, texts: Sequence[str] = ()) -> TableFile:
    """Return a CSV file, which messages call `path`, as a table. Columns `texts` hold texts."""
    return TableFile(path, lambda: _read(file, path, delimiter, decimal, texts), partial(place, file, delimiter))


def place(file: Path, delimiter: str, row: int) -> str:
    """Return the text for the position of a row: its line."""
    return f"line {_line(file, delimiter, row)}"


def read_texts(file: Path, path: str, delimiter: str) -> Any:
    """Return all columns as texts, in which words such as NA stand for themselves; UserError as for a table."""
    csv, arrow = import_extra("pyarrow.csv"), import_extra("pyarrow")
    check_header(first_line(file, path), path, delimiter)
    names = next(records(file, delimiter), (1, []))[1]
    convert = csv.ConvertOptions(column_types=dict.fromkeys(names, arrow.string()))
    return _parsed(file, path, delimiter, convert, csv.ReadOptions(block_size=TEXT_BLOCK))


def _read(file: Path, path: str, delimiter: str, decimal: str, texts: Sequence[str]) -> Any:
    csv, arrow = import_extra("pyarrow.csv"), import_extra("pyarrow")
    check_header(first_line(file, path), path, delimiter)
    types = dict.fromkeys(texts, arrow.string())
    convert = csv.ConvertOptions(strings_can_be_null=True, decimal_point=decimal, column_types=types)
    return _parsed(file, path, delimiter, convert, csv.ReadOptions())


def _parsed(file: Path, path: str, delimiter: str, convert: Any, read: Any) -> Any:
    csv, arrow = import_extra("pyarrow.csv"), import_extra("pyarrow")
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    try:
        return csv.read_csv(file, read_options=read, parse_options=parse, convert_options=convert)
    except arrow.ArrowException as error:
        wrong = uneven(file, delimiter)
        if wrong is None and "UTF8" in str(error):
            raise UserError(f"{path}: is not text in UTF-8; save the file in UTF-8") from error
        raise UserError(f"{path}: {wrong or f'not a table of comma-separated values: {error}'}") from error


def _open(file: Path | bytes) -> io.TextIOWrapper:
    """Open the text of a file, compressed or not, or of bytes; what is not UTF-8 becomes U+FFFD."""
    stream = io.BytesIO(file) if isinstance(file, bytes) else import_extra("pyarrow").input_stream(str(file))
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")


def first_line(file: Path | bytes, path: str) -> str:
    """Return the names of the columns as they stand in the file; UserError if it is no text."""
    try:
        with _open(file) as text:
            line = text.readline(HEADER)
    except (OSError, import_extra("pyarrow").ArrowException) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if "\0" in line or "\ufffd" in line:
        raise UserError(f"{path}: line 1 is not text in UTF-8: {line[:20]!r}; save the file in UTF-8")
    return line


def check_header(line: str, path: str, delimiter: str) -> None:
    """Raise UserError if another character than `delimiter` separates the names."""
    other = max(DELIMITERS, key=line.count)
    if delimiter not in line and other in line:
        raise UserError(
            f"{path}: line 1 has no {delimiter!r} but {line.count(other)} {other!r} between names; "
            f"set data.delimiter: {DELIMITERS[other]}"
        )


def _line(file: Path, delimiter: str, row: int) -> int:
    """Return the line, from 1, on which a row begins.

    Quoted values may hold line breaks, and empty lines are no rows.
    """
    return next((line for number, (line, _) in enumerate(records(file, delimiter)) if number == row + 1), row + 2)


def uneven(file: Path, delimiter: str) -> str | None:
    """Return which row has another number of values than the header has names.

    Return None if there is none.
    """
    names = 0
    for line, values in records(file, delimiter):
        names = names or len(values)
        if len(values) != names:
            return f"line {line} has {len(values)} values, expected {names} as the header: not a table"
    return None


def records(file: Path | bytes, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line on which each record begins, and its values."""
    with _open(file) as text:
        reader, line = csv_text.reader(text, delimiter=delimiter), 1
        with contextlib.suppress(csv_text.Error):
            for values in reader:
                if values:
                    yield line, values
                line = reader.line_num + 1

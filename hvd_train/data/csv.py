"""Rows of a CSV file with a header: one column is the target, others the inputs."""

from __future__ import annotations

import contextlib
import csv as csv_text
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hvd_train.data._source import existing, extra
from hvd_train.data._table import Options, dataset
from hvd_train.data.base import Dataset
from hvd_train.errors import UserError
from hvd_train.options import Annotated, Field, Fraction, Literal, NonNegativeInt

HEADER = 2**20
"""Characters of the first line that are looked at."""
DELIMITERS = {",": "','", ";": "';'", "\t": '"\\t"', "|": "'|'"}
"""Characters that files use between values, and how YAML writes them."""


def create(
    *,
    path: Annotated[str, "CSV file, its first row the names of the columns"],
    delimiter: Annotated[str, Field(min_length=1, max_length=1), "character between values"] = ",",
    decimal: Annotated[Literal[".", ","], "character before the decimals of a number"] = ".",
    target: Annotated[str, "name of the column to predict"],
    features: Annotated[list[str], "names of the columns used as inputs; all the others where empty"] = [],
    task: Annotated[
        Literal["auto", "classification", "regression"],
        "auto makes classes of texts and integers, and a regression of other numbers",
    ] = "auto",
    standardise: Annotated[bool, "bring each input to mean 0, deviation 1 over the training samples"] = False,
    categorical: Annotated[
        Literal["error", "onehot", "code"],
        "texts among the inputs: refused, one input for each text of the training rows, or one input that numbers them from 1",
    ] = "error",
    missing: Annotated[
        Literal["error", "mean", "drop"],
        "missing values: refused, the mean of the training rows (of texts: as a text in no training row), or rows without them",
    ] = "error",
    test_fraction: Annotated[Fraction, "share of the samples held out for evaluation"] = 0.2,
    seed: Annotated[NonNegativeInt, "chooses the samples held out"] = 0,
) -> Dataset:
    """Inputs of shape (n,): a number each column, or one for each category of a column with `categorical: onehot`.

    Classes are numbered in sorted order. A text that is in no training row has the code 0, or zeros. UserError for columns
    that are unknown, hold values that are not finite or missing, or are neither numbers nor texts. Columns that only number
    the rows are no inputs unless `features` names them.
    """
    options = Options(target, features, task, standardise, categorical, missing, test_fraction, seed)
    file = existing(path, "path")
    return dataset(
        _read(file, path, delimiter, decimal), path, lambda row: f"line {_line(file, delimiter, row)}", options
    )


def _read(file: Path, path: str, delimiter: str, decimal: str) -> Any:
    csv, arrow = extra("pyarrow.csv"), extra("pyarrow")
    _check_header(_first_line(file, path), path, delimiter)
    try:
        return csv.read_csv(
            file,
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(strings_can_be_null=True, decimal_point=decimal),
        )
    except arrow.ArrowException as error:
        uneven = _uneven(file, delimiter)
        raise UserError(f"{path}: {uneven or f'not a table of comma-separated values: {error}'}") from error


def _open(file: Path) -> io.TextIOWrapper:
    """The text of the file, compressed or not; bytes that are not UTF-8 become U+FFFD."""
    stream = extra("pyarrow").input_stream(str(file))
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")


def _first_line(file: Path, path: str) -> str:
    try:
        with _open(file) as text:
            line = text.readline(HEADER)
    except (OSError, extra("pyarrow").ArrowException) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if "\0" in line or "\ufffd" in line:
        raise UserError(f"{path}: line 1 is not text in UTF-8: {line[:20]!r}; save the file in UTF-8")
    return line


def _check_header(line: str, path: str, delimiter: str) -> None:
    """UserError where another character than `delimiter` is between the names."""
    other = max(DELIMITERS, key=line.count)
    if delimiter not in line and other in line:
        raise UserError(
            f"{path}: line 1 has no {delimiter!r} but {line.count(other)} {other!r} between names; "
            f"set data.delimiter: {DELIMITERS[other]}"
        )


def _line(file: Path, delimiter: str, row: int) -> int:
    """The line, from 1, on which row `row` begins: values in quotes may hold line breaks, and empty lines are no rows."""
    return next((line for number, (line, _) in enumerate(_records(file, delimiter)) if number == row + 1), row + 2)


def _uneven(file: Path, delimiter: str) -> str | None:
    """Which row has not as many values as the header has names."""
    names = 0
    for line, values in _records(file, delimiter):
        names = names or len(values)
        if len(values) != names:
            return f"line {line} has {len(values)} values, expected {names} as the header: not a table"
    return None


def _records(file: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record begins, and its values."""
    with _open(file) as text:
        reader, line = csv_text.reader(text, delimiter=delimiter), 1
        with contextlib.suppress(csv_text.Error):
            for values in reader:
                if values:
                    yield line, values
                line = reader.line_num + 1

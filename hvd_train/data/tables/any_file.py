"""Read a table of any of the formats, which the ending of its file tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvd_train.data.files import import_extra
from hvd_train.data.records.parse import parse_line
from hvd_train.data.sources import csv, parquet
from hvd_train.data.tables.endings import ARROW, LINES, delimiter_of, suffix
from hvd_train.data.tables.table import TableFile
from hvd_train.errors import UserError


def table_file(file: Path, path: str, delimiter: str | None = None) -> TableFile:
    """Return a table, which messages call `path`: Parquet, Arrow, JSON Lines, otherwise CSV.

    Without `delimiter`, the ending of a CSV file says it.
    """
    ending = suffix(file)
    if ending in ARROW:
        return parquet.table(file, path)
    if ending in LINES:
        return TableFile(path, lambda: _json_lines(file, path), "row {} (from 0)".format)
    return csv.table(file, path, delimiter or delimiter_of(path), ".")


def _json_lines(file: Path, path: str) -> Any:
    json, arrow = import_extra("pyarrow.json"), import_extra("pyarrow")
    try:
        return json.read_json(file)
    except arrow.ArrowException as error:
        _check_lines(file, path)
        raise UserError(f"{path}: not a table of one JSON object a line: {error}") from error


def _check_lines(file: Path, path: str) -> None:
    """Raise UserError for the first line that is no JSON object."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                parse_line(line, f"{path}: line {number}".format)

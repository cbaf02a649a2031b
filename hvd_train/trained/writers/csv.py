"""CSV with the names of the columns in the first row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

from hvd_train.data.files import import_extra
from hvd_train.trained.answer import Columns
from hvd_train.trained.columns import batch


class CSV:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._writer: Any = None

    def write(self, beside: Mapping[str, Any], answers: Columns) -> None:
        rows = batch(beside, answers, nested=False)
        if self._writer is None:
            options = import_extra("pyarrow.csv").WriteOptions(quoting_style="needed")
            self._writer = import_extra("pyarrow.csv").CSVWriter(self._file, rows.schema, write_options=options)
        self._writer.write_batch(rows)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def create(file: BinaryIO) -> CSV:
    return CSV(file)

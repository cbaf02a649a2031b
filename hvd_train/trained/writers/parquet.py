"""Parquet, compressed by zstd. The rows of at least 2^17 form a row group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

from hvd_train.data.files import import_extra
from hvd_train.trained.answer import Columns
from hvd_train.trained.columns import batch

ROWS = 2**17


class Parquet:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._writer: Any = None
        self._waiting: list[Any] = []

    def write(self, beside: Mapping[str, Any], answers: Columns) -> None:
        self._waiting.append(batch(beside, answers, nested=True))
        if sum(part.num_rows for part in self._waiting) >= ROWS:
            self._flush()

    def close(self) -> None:
        if self._waiting:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        table = import_extra("pyarrow").Table.from_batches(self._waiting)
        if self._writer is None:
            parquet = import_extra("pyarrow.parquet")
            self._writer = parquet.ParquetWriter(self._file, table.schema, compression="zstd")
        self._writer.write_table(table)
        self._waiting = []


def create(file: BinaryIO) -> Parquet:
    return Parquet(file)

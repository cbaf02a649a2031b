"""Rows of Parquet and Arrow files in blocks, read by pyarrow with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hvd_train.data.files import import_extra
from hvd_train.data.sources.parquet import IPC_FILE, IPC_STREAM
from hvd_train.errors import UserError
from hvd_train.trained.input import Block
from hvd_train.trained.reading import header
from hvd_train.trained.reading.lines import find

ROWS = 2**14
SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")


def blocks(path: str, columns: Sequence[str], keep: Sequence[str], rows: int = ROWS) -> Iterator[Block]:
    """Yield blocks of `rows` rows at most; UserError for a file without rows and for a missing column."""
    arrow, start = import_extra("pyarrow"), 0
    try:
        names, batches = _opened(path, arrow, rows)
        header.check(path, names, columns, keep)
        for whole in batches:
            for at in range(0, whole.num_rows, rows):
                batch = whole.slice(at, rows)
                yield Block(batch, _place(path, start), {name: batch.column(names.index(name)) for name in keep})
                start += batch.num_rows
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a Parquet or Arrow file: {error}") from error
    if not start:
        raise UserError(f"{path}: no rows, expected at least one")


def _opened(path: str, arrow: Any, rows: int) -> tuple[list[str], Iterator[Any]]:
    """Return the names of the columns, and the record batches."""
    file = find(path)
    with open(file, "rb") as content:
        magic = content.read(len(IPC_FILE))
    if not magic:
        raise UserError(f"{path}: is empty, expected a Parquet or Arrow file")
    if magic == IPC_FILE:
        reader = arrow.ipc.open_file(arrow.memory_map(str(file)))
        return reader.schema.names, map(reader.get_batch, range(reader.num_record_batches))
    if magic.startswith(IPC_STREAM):
        stream = arrow.ipc.open_stream(arrow.memory_map(str(file)))
        return stream.schema.names, iter(stream)
    table = import_extra("pyarrow.parquet").ParquetFile(file)
    return table.schema_arrow.names, table.iter_batches(rows)


def _place(path: str, start: int) -> Any:
    return lambda row: f"{path}: row {start + row} (from 0)"

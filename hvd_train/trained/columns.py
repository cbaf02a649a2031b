"""Columns of predictions as record batches of pyarrow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hvd_train.data.files import import_extra
from hvd_train.text import strict_json
from hvd_train.trained.answer import Columns, Named


def batch(beside: Mapping[str, Any], answers: Columns, *, nested: bool) -> Any:
    """Return columns as a `pyarrow.RecordBatch`. Lists become texts of JSON unless `nested`."""
    arrow = import_extra("pyarrow")
    columns = {name: _column(arrow, column, nested=nested) for name, column in {**beside, **answers}.items()}
    return arrow.RecordBatch.from_arrays([*columns.values()], [*columns])


def _column(arrow: Any, column: Any, *, nested: bool) -> Any:
    if isinstance(column, Named):
        names = column.names if all(isinstance(n, int) for n in column.names) else [str(n) for n in column.names]
        indices = arrow.array(column.codes.astype(np.int32, copy=False))
        return arrow.DictionaryArray.from_arrays(indices, arrow.array(names)).dictionary_decode()
    if isinstance(column, arrow.Array):
        return column.dictionary_decode() if isinstance(column, arrow.DictionaryArray) else column
    if isinstance(column, list) and not nested and any(isinstance(value, list | dict) for value in column):
        column = [strict_json.dumps(value) for value in column]
    return arrow.array(column)

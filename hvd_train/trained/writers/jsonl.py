"""JSON Lines: an object on each line, in the form that `Predictor.predict` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

from hvd_train.text import strict_json
from hvd_train.trained.answer import Columns, values
from hvd_train.trained.writer import Shape


class JsonLines:
    def __init__(self, file: BinaryIO, record: Shape) -> None:
        self._file, self._record = file, record

    def write(self, beside: Mapping[str, Any], answers: Columns) -> None:
        inputs, outputs = _rows(beside), _rows(answers)
        for number, row in enumerate(outputs):
            whole = {**(inputs[number] if inputs else {}), **self._record(row)}
            self._file.write(strict_json.dumps(whole).encode() + b"\n")

    def close(self) -> None:
        pass


def _rows(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lists = [c.to_pylist() if hasattr(c, "to_pylist") else values(c) for c in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def create(file: BinaryIO, record: Shape) -> JsonLines:
    return JsonLines(file, record)

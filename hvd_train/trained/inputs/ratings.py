"""Users to recommend items to, or pairs of users and items whose rating is predicted, by their ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.files import import_extra
from hvd_train.data.ratings import ids as of_ids
from hvd_train.data.ratings.ids import UNKNOWN, Ids
from hvd_train.data.tables.endings import delimiter_of
from hvd_train.errors import UserError
from hvd_train.trained.input import Block, Form, Input, InputContext, Place, json_object, numbered
from hvd_train.trained.reading import header, tables


class Ratings(Input):
    """Encodes rows that are dicts, or a `pyarrow.RecordBatch`, with the columns of the run.

    An id that no training row has becomes `UNKNOWN`, as in held-out rows. Items are read where ratings
    are predicted.
    """

    def __init__(self, context: InputContext) -> None:
        keys = ("user",) if context.spec.task == "ranking" else ("user", "item")
        self._names = {key: str(context.document[key]["name"]) for key in keys}
        self._ids = {key: of_ids.saved(context.document[key]["ids"]) for key in keys}
        self._options = context.section.options
        self._unknown: dict[str, tuple[int, str]] = {}

    def encode(self, records: Any, place: Place = numbered) -> dict[str, Tensor]:
        """Return numbers (int64) of users and items."""
        by_name = tables.by_column(records, place)
        return {key: torch.from_numpy(self._numbers(key, by_name, place)) for key in self._names}

    def blocks(self, paths: Sequence[str], keep: Sequence[str] = ()) -> Iterator[Block]:
        """Yield blocks of rows of CSV, Parquet, Arrow and JSON Lines files."""
        kinds = {name: "text" if self._ids[key].are_texts else "any" for key, name in self._names.items()}
        for path in paths:
            options = {"delimiter": self._options.get("delimiter") or delimiter_of(path)}
            yield from tables.blocks([path], kinds, keep, options)

    def form(self) -> Form:
        """Return an object with the columns of the run; further columns are ignored."""
        return Form(
            json_object("Row", {name: str if self._ids[key].are_texts else int for key, name in self._names.items()})
        )

    def warnings(self) -> Iterator[str]:
        for name, (count, first) in self._unknown.items():
            yield f"{first} is in no training row; {count} rows have such an id in column '{name}', which are answered without it"

    def _numbers(self, key: str, by_name: Mapping[str, Any], place: Place) -> Any:
        name = self._names[key]
        if name not in by_name:
            raise UserError(f"{place(0)}: {header.lacks(name, by_name)}")
        column = _column(by_name[name](), self._ids[key], name, place)
        numbers = self._ids[key].numbers(column)
        unknown = numbers == UNKNOWN
        if unknown.any():
            count, first = self._unknown.get(name, (0, ""))
            row = int(unknown.argmax())
            shown = first or f"{place(row)}: column '{name}': '{column[row].as_py()}'"
            self._unknown[name] = count + int(unknown.sum()), shown
        return numbers


def _column(values: Any, ids: Ids, name: str, place: Place) -> Any:
    """Return ids as an array of pyarrow; UserError for a missing one and for another type."""
    arrow = import_extra("pyarrow")
    column = values.to_pylist() if hasattr(values, "to_pylist") and not arrow.types.is_integer(values.type) else values
    if isinstance(column, list):
        column = arrow.array([_id(value, ids, name, place, row) for row, value in enumerate(column)], ids.values.type)
    if column.null_count:
        raise _no_value(name, int(np.asarray(column.is_null()).argmax()), place)
    return column


def _id(value: Any, ids: Ids, name: str, place: Place, row: int) -> Any:
    if value is None:
        raise _no_value(name, row, place)
    if ids.are_texts and isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    if not ids.are_texts and isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
        return int(value)
    expected = "text" if ids.are_texts else "integer"
    raise UserError(f"{place(row)}: column '{name}': {value!r} is no {expected}, expected an id as in training")


def _no_value(name: str, row: int, place: Place) -> UserError:
    return UserError(f"{place(row)}: column '{name}': no value, expected the id of a {name}")


def create(context: InputContext) -> Ratings:
    return Ratings(context)

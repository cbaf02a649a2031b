"""Rows of a table: numbers and categories by column, encoded as the training rows were fitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hvd_train.data.tables.encoding import Category, Number, column
from hvd_train.data.value_checks import LARGEST, Array
from hvd_train.errors import UserError
from hvd_train.trained.input import Block, Form, Input, InputContext, Place, json_object, numbered
from hvd_train.trained.reading import header, tables


class Table(Input):
    """Encodes rows that are dicts, or a `pyarrow.RecordBatch`.

    A category that no training row has becomes zeros, or the code 0, as in held-out rows. Columns
    that are no inputs are ignored. A missing value is an error unless training filled it in.
    """

    def __init__(self, context: InputContext) -> None:
        self._columns = [column(document) for document in context.document["columns"]]
        self._options, self._facts = context.section.options, context.facts
        self._unknown: dict[str, tuple[int, str]] = {}

    def encode(self, records: Any, place: Place = numbered) -> Tensor:
        """Return inputs (rows, width) in float32."""
        by_name = tables.by_column(records, place)
        x = np.empty((len(records), sum(c.width for c in self._columns)), np.float32)
        at = 0
        for one in self._columns:
            if one.name not in by_name:
                raise self._missing_column(one.name, by_name, place)
            with np.errstate(over="ignore"):
                x[:, at : at + one.width] = self._encoded(one, by_name[one.name](), place)
            at += one.width
        if not np.isfinite(x).all():
            raise self._not_finite(x, place)
        return torch.from_numpy(x)

    def blocks(self, paths: Sequence[str], keep: Sequence[str] = ()) -> Iterator[Block]:
        """Yield blocks of rows of CSV, Parquet, Arrow and JSON Lines files."""
        kinds = {c.name: "number" if isinstance(c, Number) else _category_kind(c) for c in self._columns}
        return tables.blocks(paths, kinds, keep, self._options)

    def form(self) -> Form:
        """Return an object with the columns of the run; further columns are ignored."""
        return Form(json_object("Row", {column.name: _cell(column) for column in self._columns}))

    def warnings(self) -> Iterator[str]:
        for name, (count, first) in self._unknown.items():
            encoding = next(c.encoding for c in self._columns if isinstance(c, Category) and c.name == name)
            as_ = "a row of zeros" if encoding == "onehot" else "the code 0"
            yield f"{first} is in no training row; {count} rows with such values in column '{name}' have {as_} there"

    def _encoded(self, one: Number | Category, values: tables.Values, place: Place) -> Array:
        if isinstance(one, Number):
            numbers = tables.numbers(values, one.name, place)
            if one.missing is None and (gaps := np.isnan(numbers)).any():
                raise self._no_value(one.name, int(gaps.argmax()), place)
            return one.encode(numbers)
        codes, is_null = tables.codes(values, one)
        if is_null.any() and self._facts.get("missing", "mean") != "mean":
            raise self._no_value(one.name, int(is_null.argmax()), place)
        self._count_unknown(one, codes, is_null, values, place)
        return one.of_codes(codes)

    def _count_unknown(self, one: Category, codes: Array, is_null: Array, values: tables.Values, place: Place) -> None:
        unknown = (codes == 0) & ~is_null
        if unknown.any():
            count, first = self._unknown.get(one.name, (0, ""))
            row = int(unknown.argmax())
            shown = first or f"{place(row)}: column '{one.name}': '{tables.value(values, row)}'"
            self._unknown[one.name] = count + int(unknown.sum()), shown

    def _no_value(self, name: str, row: int, place: Place) -> UserError:
        return UserError(
            f"{place(row)}: column '{name}': no value, expected one: the run was trained with data.missing: "
            f"{self._facts.get('missing', 'error')} (mean fills missing values in)"
        )

    def _not_finite(self, x: Array, place: Place) -> UserError:
        row, at = np.argwhere(~np.isfinite(x))[0].tolist()
        names = [one.name for one in self._columns for _ in range(one.width)]
        return UserError(
            f"{place(row)}: column '{names[at]}': not finite in float32, expected a number of at most {LARGEST:.3g}"
        )

    def _missing_column(self, name: str, found: Mapping[str, Any], place: Place) -> UserError:
        return UserError(f"{place(0)}: {header.lacks(name, found)}")


def _category_kind(of: Category) -> str:
    """Return `text` if all categories are texts, else `any`."""
    return "text" if all(isinstance(value, str) for value in of.categories) else "any"


def _cell(of: Number | Category) -> Any:
    """Return the type of a value of a column in JSON; null stands for a missing value."""
    if isinstance(of, Number):
        number = Annotated[float, Field(allow_inf_nan=False)]
        return number if of.missing is None else number | None
    types = sorted({type(value) for value in of.categories}, key=str)
    examples = list(of.categories[:5])
    return Annotated[
        reduce(or_, types, type(None)), Field(description="a category of the training rows", examples=examples)
    ]


def create(context: InputContext) -> Table:
    return Table(context)

"""A table and the options of its source."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hvd_train.data.hold_out import HoldOut
from hvd_train.data.value_checks import Array, Place
from hvd_train.errors import UserError, nearest

Task = Literal["auto", "classification", "regression"]
Categorical = Literal["error", "onehot", "code"]
Missing = Literal["error", "mean", "drop"]


@dataclass(frozen=True)
class TableOptions:
    """The options that the sources of tables share."""

    target: str
    features: list[str]
    task: Task
    standardise: bool
    categorical: Categorical
    missing: Missing
    hold_out: HoldOut


@dataclass(frozen=True)
class TableFile:
    """A file of a table."""

    where: str
    """The name of the file in messages."""
    read: Callable[[], Any]
    """Returns the rows as a `pyarrow.Table`; UserError if they cannot be read."""
    at: Callable[[int], str]
    """Returns the text for the position of a row, from its number in the file."""


@dataclass(frozen=True)
class Table:
    """The rows that are in use, of one file or of several ones, one after another."""

    arrow: Any
    """The rows as a `pyarrow.Table`."""
    files: Sequence[TableFile]
    starts: Sequence[int]
    """The number of the first row of each file."""
    rows: Array
    """The number of each row among those of all files."""

    @property
    def where(self) -> str:
        """The name of the first file, which has the training rows, in messages."""
        return self.files[0].where

    def located(self, row: int) -> tuple[str, str]:
        """Return the name of the file of a row, and the text for its position there."""
        number = int(self.rows[row])
        of = bisect_right(self.starts, number) - 1
        return self.files[of].where, self.files[of].at(number - self.starts[of])

    def place(self, column: str, row: int) -> str:
        """Return the text for the value of a column in a row."""
        where, at = self.located(row)
        return f"{where}: column '{column}', {at}"

    def groups(self, name: str) -> Array:
        """Return a number for each row, equal for rows with equal values in a column; UserError without the column."""
        if name not in self.arrow.column_names:
            raise UserError(
                f"data.fold.group: no column '{name}' in {self.where}{nearest(name, self.arrow.column_names)}"
            )
        numbers: Array = np.asarray(self.arrow[name].combine_chunks().dictionary_encode("encode").indices)
        return numbers

    def places(self, column: str) -> Place:
        """Return the places of an array with one entry, or one row, for each row of the table."""
        return lambda index: self.place(column, index[0])

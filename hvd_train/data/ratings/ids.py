"""Numbers of the users and the items of a table, from their ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hvd_train.data.files import import_extra
from hvd_train.data.ratings.packed import pack, unpack
from hvd_train.data.value_checks import Array

UNKNOWN = 0
"""The number of an id that no training row has."""


@dataclass(frozen=True)
class Ids:
    """Numbers ids in sorted order from 1 on. Ids are integers or texts."""

    values: Any
    """The ids in this order, a `pyarrow.Array` of int64 or string."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def are_texts(self) -> bool:
        return str(self.values.type) == "string"

    @cached_property
    def names(self) -> list[Any]:
        """The id of each number; None for `UNKNOWN`."""
        return [None, *self.values.to_pylist()]

    def numbers(self, column: Any) -> Array:
        """Return the number of each id in a column of pyarrow (int64), `UNKNOWN` for other ids.

        Raise `pyarrow.ArrowInvalid` for a text where ids are integers.
        """
        compute = import_extra("pyarrow.compute")
        found = compute.index_in(column.cast(self.values.type), value_set=self.values)
        numbers: Array = np.asarray(compute.fill_null(found, -1), np.int64) + 1
        return numbers

    def only(self, numbers: Array) -> Ids:
        """Return the ids with these numbers."""
        return Ids(self.values.take(import_extra("pyarrow").array(np.unique(numbers) - 1)))

    @property
    def document(self) -> dict[str, Any]:
        """The ids as JSON. Integers are the first one and the distances to the next ones."""
        if self.are_texts:
            return {"kind": "texts", "values": self.values.to_pylist()}
        integers = np.asarray(self.values, np.int64)
        return {"kind": "integers", "first": int(integers[0]), "steps": pack(np.diff(integers))}


def fit(column: Any) -> Ids:
    """Return the ids in a column of pyarrow without missing values, of integers or texts."""
    arrow, compute = import_extra("pyarrow"), import_extra("pyarrow.compute")
    kind = arrow.int64() if arrow.types.is_integer(column.type) else arrow.string()
    different = compute.unique(column.cast(kind))
    return Ids(different.take(compute.sort_indices(different)))


def saved(document: Mapping[str, Any]) -> Ids:
    """Return the ids that `document` describes."""
    arrow = import_extra("pyarrow")
    if document["kind"] == "texts":
        return Ids(arrow.array(document["values"], arrow.string()))
    steps = unpack(document["steps"])
    return Ids(arrow.array(document["first"] + np.concatenate([[0], steps.cumsum()])))

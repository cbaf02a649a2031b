"""One pass over records: the kinds of their values, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hvd_train.data.records.fields import Fields, pick
from hvd_train.data.records.values import Place, as_array, within
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError

Read = Callable[[int, Place], Any]
"""Returns a record by its number; UserError, which begins with the place, for a damaged one."""
EXACT = 2**24
"""Integers up to this one are exact in float32."""


@dataclass(frozen=True)
class Numbers:
    """A list of numbers that is a target."""

    shape: tuple[int, ...]
    integers: bool
    largest: int


@dataclass
class Scan:
    """What `scan` found in records."""

    place: Callable[[int], str]
    """Returns the place of a record for messages."""
    targets: list[Any] = field(default_factory=list)
    """The target of each record: a text, a number, `Numbers`, a dict, or None for a damaged record."""
    floats: set[str] = field(default_factory=set)
    """The keys that have a number that is no integer."""
    inexact: dict[str, str] = field(default_factory=dict)
    """By key, the place and value of the first integer that float32 may change."""
    shapes: dict[str, tuple[int, ...] | None] = field(default_factory=dict)
    """The shape of the numbers of each key; None for differing shapes and for values that are no numbers."""
    damage: str | None = None
    """The message for the first damaged record."""
    damaged: int = 0
    """The number of damaged records."""

    def add(self, number: int, read: Read, fields: Fields) -> None:
        """Add record `number`."""
        try:
            record = read(number, partial(self._place, number))
            arrays = {key: self._array(record, key, number) for key in fields.keys}
            target = None if fields.target is None else self._target(record, fields.target, number)
        except UserError as error:
            self.damage = self.damage or str(error)
            self.damaged += 1
            self.targets.append(None)
            return
        for key, array in arrays.items():
            self._note(key, array, number)
        self.targets.append(target)

    def _array(self, record: Any, key: str, number: int) -> Array | None:
        return as_array(pick(record, key, partial(self._place, number)), self._at(key, number))

    def _at(self, key: str, number: int) -> Place:
        return within(partial(self._place, number), key)

    def _place(self, number: int) -> str:
        """Return the place of a record for the first damage; counting lines for each would be slow."""
        return "" if self.damaged else self.place(number)

    def _note(self, key: str, array: Array | None, number: int) -> None:
        shape = None if array is None else array.shape
        if self.shapes.setdefault(key, shape) != shape:
            self.shapes[key] = None
        if array is None:
            return
        if array.dtype.kind == "f":
            self.floats.update([key] if array.size else [])
        elif key not in self.inexact and array.size and abs(array).max() > EXACT:
            self.inexact[key] = f"{self.place(number)}: '{key}' has {abs(array).max()}"

    def _target(self, record: Any, key: str, number: int) -> Any:
        value, at = pick(record, key, partial(self._place, number)), self._at(key, number)
        if isinstance(value, list):
            array = as_array(value, at)
            if array is None:
                return {}
            integers = array.dtype.kind in "bi" or not array.size
            return Numbers(array.shape, integers, int(array.max()) if integers and array.size else 0)
        if value is None or not isinstance(value, dict | str):
            as_array(value, at)
        return value


def scan(numbers: Iterable[int], read: Read, place: Callable[[int], str], fields: Fields) -> Scan:
    """Return what is in the records `numbers`."""
    found = Scan(place)
    for number in numbers:
        found.add(number, read, fields)
    return found

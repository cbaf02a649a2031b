"""How a column of a table becomes inputs: fitted on the training rows, applied to all, and saved with the run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from hvd_train.data._check import Array

Encoding = Literal["onehot", "code"]


class Column(Protocol):
    """A fitted column."""

    @property
    def document(self) -> dict[str, Any]:
        """The column as JSON, from which `encode` can be done again."""

    def encode(self, values: Array) -> Array:
        """Inputs of shape (rows, width) in float64."""


@dataclass(frozen=True)
class Number:
    """(value - mean) / deviation; `missing` stands for a missing value, None where there must be none."""

    name: str
    missing: float | None = None
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def document(self) -> dict[str, Any]:
        scale = {"mean": self.mean, "deviation": self.deviation}
        return {"name": self.name, "kind": "number", "missing": self.missing, **scale}

    def encode(self, values: Array) -> Array:
        whole = values if self.missing is None else np.where(np.isnan(values), self.missing, values)
        with np.errstate(over="ignore"):
            return ((whole - self.mean) / self.deviation)[:, None]


@dataclass(frozen=True)
class Category:
    """One of `categories`, as a row with a single one in it, or as its place from 1 on.

    A value that is missing, or is none of them, is a row of zeros or the place 0.
    """

    name: str
    encoding: Encoding
    categories: tuple[Any, ...]

    @property
    def document(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.encoding, "categories": list(self.categories)}

    def encode(self, values: Array) -> Array:
        codes = self.codes(values)
        if self.encoding == "code":
            return codes[:, None].astype(np.float64)
        return np.eye(len(self.categories) + 1)[codes][:, 1:]

    def codes(self, values: Iterable[Any]) -> Array:
        """The place of each value, 0 for one that is none of the categories."""
        places = {category: place for place, category in enumerate(self.categories, 1)}
        return np.array([places.get(value, 0) for value in values], np.int64)


def number(name: str, training: Array, *, standardise: bool, fill: bool) -> Number:
    """Fit a column of numbers, NaN where a value is missing, of which at least one is there."""
    known = training[~np.isnan(training)]
    missing = float(_moments(known)[0]) if fill else None
    whole = known if missing is None else np.where(np.isnan(training), missing, training)
    mean, deviation = _moments(whole) if standardise else (0.0, 1.0)
    return Number(name, missing, mean, deviation)


def category(name: str, training: Iterable[Any], encoding: Encoding) -> Category:
    """Fit a column of texts or other categories, None where a value is missing; they are numbered in sorted order."""
    return Category(name, encoding, tuple(sorted({value for value in training if value is not None})))


def _moments(values: Array) -> tuple[float, float]:
    """Mean and standard deviation; the value itself and 1 where all are equal."""
    if values.min() == values.max():
        return float(values[0]), 1.0
    # A power of two: dividing by it is exact, and squares neither overflow nor vanish.
    scale = np.ldexp(1.0, int(np.frexp(np.abs(values).max())[1]) - 1)
    unit = values / scale
    return float(unit.mean() * scale), float(unit.std() * scale)

"""The encoding of a column as inputs, fitted on the training rows and saved with the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from hvd_train.data.value_checks import Array

Encoding = Literal["onehot", "code"]


class Column(Protocol):
    """A fitted column."""

    @property
    def document(self) -> dict[str, Any]:
        """The column as JSON, from which another program can repeat `encode`."""

    @property
    def width(self) -> int:
        """The number of inputs."""

    def encode(self, values: Array) -> Array:
        """Return inputs of shape (rows, width) in float64."""


@dataclass(frozen=True)
class Number:
    """Encodes a number as (value - mean) / deviation."""

    name: str
    missing: float | None = None
    """Replaces a missing value; None if there must be no missing value."""
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def width(self) -> int:
        return 1

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
    """Encodes one of `categories` as a one-hot row, or as its code from 1 on.

    A missing or unknown value becomes a row of zeros, or the code 0.
    """

    name: str
    encoding: Encoding
    categories: tuple[Any, ...]

    @property
    def width(self) -> int:
        return len(self.categories) if self.encoding == "onehot" else 1

    @property
    def document(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.encoding, "categories": list(self.categories)}

    def encode(self, values: Array) -> Array:
        return self.of_codes(self.codes(values))

    def of_codes(self, codes: Array) -> Array:
        """Return the inputs of values with these codes."""
        if self.encoding == "code":
            return codes[:, None].astype(np.float64)
        return np.eye(len(self.categories) + 1)[codes][:, 1:]

    def codes(self, values: Iterable[Any]) -> Array:
        """Return the code of each value, 0 for a value that is no category."""
        codes = {category: code for code, category in enumerate(self.categories, 1)}
        return np.array([codes.get(value, 0) for value in values], np.int64)


def column(document: Mapping[str, Any]) -> Number | Category:
    """Return the fitted column that `document` describes."""
    if document["kind"] == "number":
        return Number(document["name"], document["missing"], document["mean"], document["deviation"])
    return Category(document["name"], document["kind"], tuple(document["categories"]))


def fit_number(name: str, training: Array, *, standardise: bool, fill: bool) -> Number:
    """Fit a column of numbers. A missing value is NaN; at least one value is not."""
    known = training[~np.isnan(training)]
    missing = float(_moments(known)[0]) if fill else None
    whole = known if missing is None else np.where(np.isnan(training), missing, training)
    mean, deviation = _moments(whole) if standardise else (0.0, 1.0)
    return Number(name, missing, mean, deviation)


def fit_category(name: str, training: Iterable[Any], encoding: Encoding) -> Category:
    """Fit a column of texts or other categories, numbered in sorted order.

    A missing value is None.
    """
    return Category(name, encoding, tuple(sorted({value for value in training if value is not None})))


def _moments(values: Array) -> tuple[float, float]:
    """Return mean and standard deviation; the value itself and 1 if all values are equal."""
    if values.min() == values.max():
        return float(values[0]), 1.0
    # A power of two: dividing by it is exact, and squares neither overflow nor vanish.
    scale = np.ldexp(1.0, int(np.frexp(np.abs(values).max())[1]) - 1)
    unit = values / scale
    return float(unit.mean() * scale), float(unit.std() * scale)

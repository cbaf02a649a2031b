"""The columns of a table, and other numbers that samples have one or a few of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hvd_train.data.base import Dataset
from hvd_train.data.survey.statistics import array, numbers
from hvd_train.data.value_checks import Array

MOST = 24
MOST_CATEGORIES = 12


def columns(data: Dataset, fields: Mapping[str, Sequence[Any]], target: str | None) -> list[dict[str, Any]]:
    """Return the columns of the `fields` as JSON: a name, the share of missing values, and statistics.

    A column of texts has `categories`, the number of samples of each. Classes are no column.
    """
    fitted = data.preprocessing.get("columns")
    found: list[dict[str, Any]] = []
    for name, leaves in fields.items():
        rows = _rows(leaves)
        if rows is None or (name == target and rows.dtype.kind in "biu"):
            continue
        if fitted and name != target:
            found += _of_table(fitted, rows, data.missing)
        elif rows.shape[1] <= MOST:
            names = [name] if rows.shape[1] == 1 else [f"{name}[{i}]" for i in range(rows.shape[1])]
            found += [{"name": n, **numbers([rows[:, i]])} for i, n in enumerate(names)]
    return found[:MOST]


def _rows(leaves: Sequence[Any]) -> Array | None:
    """Return a field as (samples, width); None if it is no number and no vector of real numbers."""
    if isinstance(leaves[0], str):
        return None
    arrays = [array(leaf) for leaf in leaves]
    plain = arrays[0].dtype.kind in ("biuf" if arrays[0].ndim == 0 else "f")
    alike = len({a.shape for a in arrays}) == 1 and arrays[0].ndim <= 1
    return np.stack([np.atleast_1d(a) for a in arrays]) if plain and alike else None


def _of_table(
    fitted: Sequence[Mapping[str, Any]], rows: Array, missing: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """Yield the columns that `encode` of `tables/encoding.py` has made of those of the file."""
    start = 0
    for column in fitted:
        name, categories = column["name"], column.get("categories", [])
        width = len(categories) if column["kind"] == "onehot" else 1
        block = rows[:, start : start + width]
        start += width
        gaps = {"missing": missing.get(name, 0.0)}
        if column["kind"] == "number":
            yield {"name": name, **numbers([block[:, 0]]), **gaps}
        else:
            counts = (
                block.sum(0) if column["kind"] == "onehot" else np.bincount(block[:, 0].astype(int), minlength=1)[1:]
            )
            yield {"name": name, "categories": _most_frequent(categories, counts.tolist()), **gaps}


def _most_frequent(categories: Sequence[Any], counts: Sequence[float]) -> dict[str, int]:
    by_count = sorted(zip(counts, categories, strict=False), key=lambda pair: -pair[0])
    return {str(category): int(n) for n, category in by_count[:MOST_CATEGORIES]}

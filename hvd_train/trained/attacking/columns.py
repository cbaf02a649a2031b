"""The columns of a table, as corruptions of its rows see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Columns:
    """The inputs that each column has, and what replaces missing values."""

    places: Sequence[slice]
    """The inputs of each column."""
    numbers: Tensor
    """The positions of inputs that are numbers (int64)."""
    deviations: Tensor
    """The standard deviation of each number over the training rows."""
    missing: Tensor
    """The input of a row without any value: means of numbers, and zeros for texts."""


def columns(documents: Sequence[Mapping[str, Any]], rows: Tensor) -> Columns:
    """Return the columns of `data.json`, with the statistics of the training `rows` (n, inputs)."""
    widths = [len(c["categories"]) if c["kind"] == "onehot" else 1 for c in documents]
    places = [slice(a, b) for a, b in pairwise([0, *accumulate(widths)])]
    numbers = torch.tensor([p.start for p, c in zip(places, documents, strict=True) if c["kind"] == "number"])
    is_number = torch.zeros(rows.shape[1], dtype=torch.bool)
    is_number[numbers.long()] = True
    means, deviations = rows.double().mean(0), rows.double().std(0, correction=0)
    missing = means.where(is_number, 0.0).to(rows)
    return Columns(places, numbers.long(), deviations[numbers.long()].to(rows), missing)

"""The contract of a method: it divides a change of one output among the parts of one sample.

A method is a file in `hvd_train/trained/explaining/methods` whose `create()` returns a `Method`.
captum does the work where it has the method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Features = tuple[Tensor, ...]
"""Floating-point inputs (rows, ...) of a model, or the embeddings of its tokens."""


@dataclass(frozen=True)
class Question:
    """Why does the model give this sample this score?"""

    score: Callable[..., Tensor]
    """Maps features of several rows to one score (rows,) each; the other inputs are the sample's."""
    features: Features
    """Those of the sample, with one row."""
    baselines: Features
    """Those of a sample without information, with one row."""
    groups: Features
    """int64, shaped as the features: values of equal number are removed together. Numbers begin at 0."""
    rows: int
    """The most rows that one call of `score` may have."""

    def difference(self) -> float:
        """Return the score of the sample minus that of the baselines."""
        with torch.no_grad():
            return float(self.score(*self.features) - self.score(*self.baselines))


@dataclass(frozen=True)
class Attribution:
    """The share of each value of the features in the output."""

    values: Features
    steps: int | None = None
    """The calls of the model that the method chose, if it chooses them."""


class Method(Protocol):
    """Attributes a score to the features of a sample."""

    completes: bool
    """True if the values promise to add up to `Question.difference`."""
    signed: bool
    """False if values say how much a part matters and not in which direction."""

    def __call__(self, question: Question) -> Attribution:
        """Return values for each feature. Equal questions and global generators give equal values."""

"""Handwritten digits of scikit-learn: 1797 images of 8 x 8 in [0, 1], ten classes; nothing is downloaded."""

from __future__ import annotations

import numpy as np

from hvd_train.data._source import Named, as_samples, hold_out, shipped
from hvd_train.data.base import Dataset
from hvd_train.options import Annotated, Fraction, NonNegativeInt


def create(
    *,
    test_fraction: Annotated[Fraction, "share of the samples held out for evaluation"] = 0.2,
    seed: Annotated[NonNegativeInt, "chooses the samples held out"] = 0,
) -> Dataset:
    """Inputs of shape (1, 8, 8). UserError without scikit-learn."""
    rows = np.loadtxt(shipped("sklearn", "datasets/data/digits.csv.gz"), delimiter=",")
    x, y = Named(rows[:, :-1].reshape(-1, 1, 8, 8) / 16, "digits"), Named(rows[:, -1].astype(np.int64), "digits")
    return hold_out(as_samples(x, y), test_fraction, seed, "digits")

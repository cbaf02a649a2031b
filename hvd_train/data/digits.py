"""Handwritten digits of scikit-learn: 1797 images of 8 x 8 in [0, 1], ten classes; nothing is downloaded."""

from __future__ import annotations

from hvd_train.data._source import extra, hold_out, tensors
from hvd_train.data.base import Dataset
from hvd_train.options import Annotated, Fraction, NonNegativeInt


def create(
    *,
    test_fraction: Annotated[Fraction, "share of the samples held out for evaluation"] = 0.2,
    seed: Annotated[NonNegativeInt, "chooses the samples held out"] = 0,
) -> Dataset:
    """Inputs of shape (1, 8, 8). UserError without scikit-learn."""
    digits = extra("sklearn.datasets").load_digits()
    x, y = tensors(digits.images[:, None] / 16, digits.target, "digits")
    return hold_out(x, y, test_fraction, seed, "digits")

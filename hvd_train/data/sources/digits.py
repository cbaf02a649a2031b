"""Handwritten digits of scikit-learn: 1797 images of 8 x 8 in [0, 1], ten classes; no download."""

from __future__ import annotations

import numpy as np

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import Annotated, Fraction, HeldOutSeed
from hvd_train.data.arrays import NamedArray, as_samples, held_out
from hvd_train.data.base import Dataset
from hvd_train.data.files import packaged_file
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.node import ALONE, Node


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    test_fraction: Annotated[Fraction, "fraction of the samples that is held out for evaluation"] = 0.2,
    seed: HeldOutSeed = 0,
) -> Dataset:
    """Return inputs of shape (1, 8, 8). Raise UserError without scikit-learn."""
    rows = np.loadtxt(packaged_file("sklearn", "datasets/data/digits.csv.gz"), delimiter=",")
    x, y = (
        NamedArray(rows[:, :-1].reshape(-1, 1, 8, 8) / 16, "digits"),
        NamedArray(rows[:, -1].astype(np.int64), "digits"),
    )
    return held_out(as_samples(x, y), HoldOut(test_fraction, seed, fold), "digits")

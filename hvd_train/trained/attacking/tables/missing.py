"""Columns without a value: the mean of a number, an unknown text."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.columns import Columns
from hvd_train.trained.attacking.corruption import Corruption

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
"""The probability of each column to have no value."""


def create(severity: int, columns: Columns) -> Corruption:
    share = SHARES[severity - 1]

    def corrupt(row: Tensor, generator: torch.Generator) -> Tensor:
        row = row.clone()
        for place, drawn in zip(columns.places, torch.rand(len(columns.places), generator=generator), strict=True):
            if drawn < share:
                row[place] = columns.missing[place]
        return row

    return corrupt

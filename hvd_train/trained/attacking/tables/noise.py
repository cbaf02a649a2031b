"""Gaussian noise of each number."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.columns import Columns
from hvd_train.trained.attacking.corruption import Corruption

DEVIATIONS = (0.1, 0.2, 0.4, 0.6, 1.0)
"""Standard deviations of each column."""


def create(severity: int, columns: Columns) -> Corruption:
    deviation = DEVIATIONS[severity - 1]

    def corrupt(row: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(columns.numbers.shape, generator=generator)
        return row.index_add(0, columns.numbers, (deviation * noise * columns.deviations).to(row))

    return corrupt

"""Numbers that are all off by the same distance, up or down, as of a sensor that drifts."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.columns import Columns
from hvd_train.trained.attacking.corruption import Corruption

DISTANCES = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Standard deviations of each column."""


def create(severity: int, columns: Columns) -> Corruption:
    distance = DISTANCES[severity - 1]

    def corrupt(row: Tensor, generator: torch.Generator) -> Tensor:
        sign = torch.randint(2, columns.numbers.shape, generator=generator) * 2 - 1
        return row.index_add(0, columns.numbers, sign * distance * columns.deviations)

    return corrupt

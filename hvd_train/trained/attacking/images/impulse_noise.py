"""Values that are black or white, as of broken pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption

SHARES = (0.03, 0.06, 0.09, 0.17, 0.27)


def create(severity: int) -> Corruption:
    share = SHARES[severity - 1]

    def corrupt(image: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(image.shape, generator=generator)
        return image.masked_fill(drawn < share / 2, 0.0).masked_fill(drawn > 1 - share / 2, 1.0)

    return corrupt

"""Tokens that are lost; the token before each takes its place."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption

SHARES = (0.01, 0.03, 0.05, 0.1, 0.2)


def create(severity: int) -> Corruption:
    share = SHARES[severity - 1]

    def corrupt(tokens: Tensor, generator: torch.Generator) -> Tensor:
        return tokens.roll(1).where(torch.rand(tokens.shape, generator=generator) < share, tokens)

    return corrupt

"""Tokens that change places with the token after them."""

from __future__ import annotations

import torch
from torch import Tensor

from hvd_train.trained.attacking.corruption import Corruption

SHARES = (0.01, 0.03, 0.05, 0.1, 0.2)


def create(severity: int) -> Corruption:
    share = SHARES[severity - 1]

    def corrupt(tokens: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(max(0, len(tokens) - 1), generator=generator) < share
        order = torch.arange(len(tokens))
        for place in torch.nonzero(drawn)[:, 0].tolist():
            order[[place, place + 1]] = order[[place + 1, place]]
        return tokens[order]

    return corrupt

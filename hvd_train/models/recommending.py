"""Scores of pairs of users and items, for models that recommend."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def table(rows: int, width: int, std: float, *, sparse: bool) -> nn.Embedding:
    """Return a vector for each number. That of number 0, which is unknown, is zero and stays so."""
    made = nn.Embedding(rows, width, padding_idx=0, sparse=sparse)
    with torch.no_grad():
        nn.init.normal_(made.weight, std=std)[0] = 0
    return made


def products(users: Tensor, items: Tensor) -> Tensor:
    """Return the products of vectors of users (n, width) with those of items.

    Items are one for each user (n, width), or several (n, m, width). The result is (n, 1) or (n, m).
    """
    if items.dim() == 2:
        return (users * items).sum(-1, keepdim=True)
    return torch.bmm(items, users[:, :, None])[:, :, 0]

"""Layers on the vector of the user and on that of the item, whose product is the score (two towers)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from hvd_train.config.options import Annotated, Fraction, PositiveInt, SparseRows
from hvd_train.models.base import DataSpec
from hvd_train.models.fit import ids
from hvd_train.models.recommending import products, table

STD = 0.1
"""The standard deviation of the first vectors."""


class TwoTower(nn.Module):
    """Predicts mean + u . v, where u and v are what the towers make of a user and an item.

    Covington et al., RecSys 2016. The towers have the same layers with weights of their own.
    """

    mean: Tensor

    def __init__(self, users: int, items: int, sizes: list[int], dropout: float, mean: float, *, sparse: bool) -> None:
        super().__init__()
        self.user, self.item = (table(rows, sizes[0], STD, sparse=sparse) for rows in (users, items))
        self.user_tower, self.item_tower = _tower(sizes, dropout), _tower(sizes, dropout)
        self.register_buffer("mean", torch.tensor(mean))

    def forward(self, user: Tensor, item: Tensor | None = None) -> Tensor:
        """Return the scores of users (n,) for items (n,) or (n, m); without items, for all items."""
        of_users = self.user_tower(self.user(user))
        if item is None:
            found = of_users @ self.item_tower(self.item.weight).T
        else:
            found = products(of_users, self.item_tower(self.item(item)))
        scores: Tensor = self.mean + found
        return scores


def _tower(sizes: list[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])  # scores of both signs need outputs of both signs


def create(
    spec: DataSpec,
    *,
    width: Annotated[PositiveInt, "numbers of the vector of a user or an item"] = 64,
    hidden: Annotated[list[PositiveInt], "neurons of each layer of a tower; the last ones are multiplied"] = [64],
    dropout: Annotated[Fraction, "fraction of the outputs between two layers that is zeroed in training"] = 0.0,
    sparse: SparseRows = False,
) -> nn.Module:
    users, items = ids(spec, "two_tower")
    return TwoTower(users, items, [width, *hidden], dropout, spec.target_mean, sparse=sparse)

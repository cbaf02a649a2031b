"""Products of vectors of users and items, with biases (matrix factorisation)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvd_train.config.options import Annotated, PositiveInt, SparseRows
from hvd_train.models.base import DataSpec
from hvd_train.models.fit import ids
from hvd_train.models.recommending import products, table

STD = 0.1
"""The standard deviation of the first vectors."""


class MatrixFactorization(nn.Module):
    """Predicts mean + b_u + b_i + p_u . q_i (Koren, Bell and Volinsky, Computer 42(8), 2009).

    The bias of a user or an item is the last number of its row, so that a step touches one table of
    each. Unknown users and items, of number 0, have zeros.
    """

    mean: Tensor

    def __init__(self, users: int, items: int, width: int, mean: float, *, sparse: bool) -> None:
        super().__init__()
        self.user, self.item = (_with_biases(rows, width, sparse=sparse) for rows in (users, items))
        self.register_buffer("mean", torch.tensor(mean))

    def forward(self, user: Tensor, item: Tensor | None = None) -> Tensor:
        """Return the predictions for users (n,) and items (n,) or (n, m); without items, for all items."""
        of_users = self.user(user)
        if item is None:
            catalogue = self.item.weight
            biases = of_users[:, -1:] + catalogue[:, -1]
            found = of_users[:, :-1] @ catalogue[:, :-1].T
        else:
            of_items = self.item(item)
            biases = of_users[:, -1:] + of_items[..., -1:].flatten(1)
            found = products(of_users[:, :-1], of_items[..., :-1])
        predictions: Tensor = self.mean + biases + found
        return predictions


def _with_biases(rows: int, width: int, *, sparse: bool) -> nn.Embedding:
    made = table(rows, width + 1, STD, sparse=sparse)
    with torch.no_grad():
        made.weight[:, -1] = 0
    return made


def create(
    spec: DataSpec,
    *,
    width: Annotated[PositiveInt, "numbers of the vector of a user or an item"] = 32,
    sparse: SparseRows = False,
) -> nn.Module:
    users, items = ids(spec, "matrix_factorization")
    return MatrixFactorization(users, items, width, spec.target_mean, sparse=sparse)

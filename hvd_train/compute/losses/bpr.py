"""Bayesian personalised ranking: items of a user shall score above the items that are not its own."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hvd_train.compute.calling import scores
from hvd_train.compute.loss import Loss, LossContext, wide
from hvd_train.data.batch import Batch
from hvd_train.data.nesting import shown
from hvd_train.errors import UserError


class PairwiseRanking(Loss):
    """Sums over samples the mean of -log sigmoid(s_i - s_j) over pairs of a positive i and a negative j.

    Rendle et al., arXiv 1205.2618. Outputs are scores (n, items). Targets (n, items) are 1 for
    positive and 0 for negative items; other items do not count.
    """

    def check(self, outputs: Any, batch: Batch) -> None:
        found, targets = scores(outputs), batch.targets
        if (
            not isinstance(found, Tensor)
            or not isinstance(targets, Tensor)
            or found.dim() != 2
            or found.shape != targets.shape
        ):
            raise UserError(
                f"train.loss: bpr takes scores (n, items) and targets of the same shape, 1 for the items of a user and 0 for "
                f"others, and the first sample has outputs {shown(found)} and targets {shown(targets)}; the data source "
                "'ratings' has such targets with 'negatives'"
            )

    def __call__(self, outputs: Any, batch: Batch) -> Tensor:
        found, targets = wide(scores(outputs)), batch.targets
        if bool((targets[:, 0] == 1).all()) and not bool(targets[:, 1:].any()):
            return F.softplus(found[:, 1:] - found[:, :1]).mean(1).sum()
        rows = zip(found, targets, strict=True)
        return sum((_of_row(row, of) for row, of in rows), start=found.new_zeros(()))


def _of_row(found: Tensor, targets: Tensor) -> Tensor:
    positive, negative = found[targets == 1], found[targets == 0]
    if not len(positive) or not len(negative):
        return found.sum() * 0
    return F.softplus(negative - positive[:, None]).mean()


def create(context: LossContext) -> Loss:
    return PairwiseRanking()

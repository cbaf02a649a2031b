"""mse for regressions, cross_entropy for classes, bpr for items to rank."""

from __future__ import annotations

from hvd_train.compute.loss import Loss, LossContext
from hvd_train.compute.losses import bpr, cross_entropy, mse
from hvd_train.errors import UserError


def create(context: LossContext) -> Loss:
    """Raise UserError for data that is neither."""
    task = context.data.spec.task
    if task == "other":
        raise UserError(
            "train.loss: the samples are neither classes nor numbers to predict, so ddl cannot choose a loss; name one "
            "(ddl list losses), or set train.loss.target: package.module:callable"
        )
    made: Loss = {"regression": mse, "ranking": bpr}.get(task, cross_entropy).create(context)
    return made

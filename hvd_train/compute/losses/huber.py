"""Squared difference up to a bound, and linear beyond it, averaged over the values of a sample."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F

from hvd_train.compute.loss import Loss, LossContext
from hvd_train.compute.losses.mse import Regression
from hvd_train.config.options import Annotated, PositiveFloat


def create(
    context: LossContext,
    *,
    delta: Annotated[PositiveFloat, "difference from which the loss is linear"] = 1.0,
) -> Loss:
    return Regression(partial(F.huber_loss, delta=delta))

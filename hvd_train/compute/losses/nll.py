"""Negative log-likelihood of classes, for models that return log-probabilities."""

from __future__ import annotations

import torch.nn.functional as F

from hvd_train.compute.loss import Loss, LossContext
from hvd_train.compute.losses.cross_entropy import ClassLoss, class_weights_of
from hvd_train.config.options import ClassWeights, IgnoreIndex


def create(
    context: LossContext,
    *,
    class_weights: ClassWeights = None,
    ignore_index: IgnoreIndex = -100,
) -> Loss:
    """Raise UserError for weights that do not fit the classes of the data."""
    weights = class_weights_of(class_weights, context)
    return ClassLoss(F.nll_loss, context, weights, ignore_index, of_log_probabilities=True)

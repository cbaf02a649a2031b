"""One linear layer: linear regression, or logistic regression for classes."""

from __future__ import annotations

from torch import nn

from hvd_train.models.base import DataSpec
from hvd_train.models.fit import values


def create(spec: DataSpec) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(values(spec, "linear"), spec.outputs))

"""A table with a value for each state and action, for agents whose observations are states."""

from __future__ import annotations

from torch import nn

from hvd_train.config.options import Annotated
from hvd_train.models.base import DataSpec
from hvd_train.models.fit import observation


def create(
    spec: DataSpec,
    *,
    initial: Annotated[float, "first value of each entry; one above all returns lets an agent try everything"] = 0.0,
) -> nn.Module:
    """Return a linear layer without bias: of a one-hot state it puts out one column."""
    layer = nn.Linear(observation(spec, "table"), spec.outputs, bias=False)
    nn.init.constant_(layer.weight, initial)
    return layer

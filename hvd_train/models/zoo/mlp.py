"""Fully connected layers with an activation between them."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from hvd_train.config.options import Annotated, Fraction, Literal, PositiveInt
from hvd_train.models.base import DataSpec
from hvd_train.models.fit import values

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


def create(
    spec: DataSpec,
    *,
    hidden: Annotated[list[PositiveInt], "neurons of each hidden layer"] = [128],
    activation: Annotated[Literal["relu", "gelu", "tanh"], "activation after each hidden layer"] = "relu",
    dropout: Annotated[Fraction, "fraction of the outputs of each hidden layer that is zeroed in training"] = 0.0,
) -> nn.Module:
    sizes = [values(spec, "mlp"), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation](), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], spec.outputs))

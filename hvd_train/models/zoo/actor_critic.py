"""A policy and a value for agents, each with layers of its own."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from hvd_train.config.options import Annotated, Literal, PositiveInt
from hvd_train.models.base import DataSpec
from hvd_train.models.fit import observation
from hvd_train.models.zoo.mlp import ACTIVATIONS


def create(
    spec: DataSpec,
    *,
    hidden: Annotated[list[PositiveInt], "neurons of each hidden layer, of the policy and of the value"] = [64, 64],
    activation: Annotated[Literal["relu", "gelu", "tanh"], "activation after each hidden layer"] = "tanh",
    shared: Annotated[bool, "policy and value share the hidden layers; needs more steps of the environment"] = False,
) -> nn.Module:
    """Return a model whose last output is the value, and whose others describe the policy."""
    sizes = [observation(spec, "actor_critic"), *hidden]
    ends = _output(sizes[-1], spec.outputs - 1, 0.01), _output(sizes[-1], 1, 1.0)
    if shared:
        return nn.Sequential(*_layers(sizes, activation), Separate(*ends))
    return Separate(*(nn.Sequential(*_layers(sizes, activation), end) for end in ends))


class Separate(nn.Module):
    """The outputs of a policy and of a value, side by side."""

    def __init__(self, policy: nn.Module, value: nn.Module) -> None:
        super().__init__()
        self.policy, self.value = policy, value

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.policy(x), self.value(x)), dim=-1)


def _layers(sizes: list[int], activation: str) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        layers += [_output(before, after, 2**0.5), ACTIVATIONS[activation]()]
    return layers


def _output(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """Return a layer with orthogonal weights: small first policies explore, as Andrychowicz et al. 2021 measured."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer

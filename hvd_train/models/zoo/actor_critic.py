"""A policy and a value for agents, each with layers of its own."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from hvd_train.config.options import Annotated, Literal, PositiveInt
from hvd_train.errors import UserError
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
    seen = observation(spec, "actor_critic")
    allowed = spec.policy_inputs or seen
    of_policy, of_value = [allowed, *hidden], [seen, *hidden]
    ends = _output(of_policy[-1], spec.outputs - 1, 0.01), _output(of_value[-1], 1, 1.0)
    if shared:
        if allowed < seen:
            raise UserError("model.shared: the value sees what the policy must not (data.state); expected false")
        return nn.Sequential(*_layers(of_value, activation), Separate(*ends))
    policy, value = (
        nn.Sequential(*_layers(sizes, activation), end) for sizes, end in zip((of_policy, of_value), ends, strict=True)
    )
    return Separate(First(allowed, policy) if allowed < seen else policy, value)


class Separate(nn.Module):
    """The outputs of a policy and of a value, side by side."""

    def __init__(self, policy: nn.Module, value: nn.Module) -> None:
        super().__init__()
        self.policy, self.value = policy, value

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.policy(x), self.value(x)), dim=-1)


class First(nn.Module):
    """`model` of the first `number` inputs."""

    def __init__(self, number: int, model: nn.Module) -> None:
        super().__init__()
        self.number, self.model = number, model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x[..., : self.number])
        return out


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

"""A policy and a value for each agent of an environment, without shared parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hvd_train.config.options import Annotated, Literal, PositiveInt
from hvd_train.errors import UserError
from hvd_train.models.base import DataSpec
from hvd_train.models.fit import observation
from hvd_train.models.zoo import actor_critic


def create(
    spec: DataSpec,
    *,
    hidden: Annotated[list[PositiveInt], "neurons of each hidden layer, of each policy and of each value"] = [64, 64],
    activation: Annotated[Literal["relu", "gelu", "tanh"], "activation after each hidden layer"] = "tanh",
) -> nn.Module:
    """Return an `actor_critic` for each agent. UserError for observations that do not name their agent."""
    observation(spec, "per_agent")
    if not spec.agents:
        raise UserError("model 'per_agent': observations do not name their agent; set data.identify to true")
    return PerAgent(
        [actor_critic.create(spec, hidden=hidden, activation=activation) for _ in range(spec.agents)],
    )


class PerAgent(nn.Module):
    """One of `models` for each row of inputs, which begins with the number of its model.

    Every model computes all rows, so that shapes do not depend on values.
    """

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        # The largest of the first numbers also names the agent once they are normalised.
        number = functional.one_hot(x[:, : len(self.models)].argmax(1), len(self.models))
        outputs = torch.stack([model(x) for model in self.models], dim=1)
        return (outputs * number.unsqueeze(-1).to(outputs.dtype)).sum(1)

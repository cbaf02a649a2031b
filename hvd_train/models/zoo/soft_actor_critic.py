"""A policy of numbers, two critics and a temperature, for soft actor-critic agents."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hvd_train.config.options import Annotated, Literal, PositiveInt
from hvd_train.errors import UserError
from hvd_train.models import fit, squashed
from hvd_train.models.base import DataSpec
from hvd_train.models.zoo.mlp import ACTIVATIONS


def create(
    spec: DataSpec,
    *,
    hidden: Annotated[list[PositiveInt], "neurons of each hidden layer, of the policy and of each critic"] = [256, 256],
    activation: Annotated[Literal["relu", "gelu", "tanh"], "activation after each hidden layer"] = "relu",
) -> nn.Module:
    """Return a `SoftActorCritic`; UserError if its outputs cannot be means and deviations."""
    observed = fit.observation(spec, "soft_actor_critic")
    if spec.outputs % 2:
        raise UserError(
            "model 'soft_actor_critic' puts out means and deviations, for the agent 'sac'; take 'actor_critic' for other "
            "agents with a policy"
        )
    numbers = spec.outputs // 2
    critics = Critics(*(_layers([observed + numbers, *hidden, 1], activation) for _ in range(2)))
    return SoftActorCritic(_layers([observed, *hidden, spec.outputs], activation), critics)


class Critics(nn.Module):
    """Two estimates of the return, side by side. Their minimum overestimates less than one does."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        joined = torch.cat((observation.flatten(1), action), dim=1)
        return torch.cat((self.first(joined), self.second(joined)), dim=1)


class SoftActorCritic(nn.Module):
    """The networks of Haarnoja et al. 2018. Actions are in [-1, 1]."""

    def __init__(self, policy: nn.Module, critics: nn.Module) -> None:
        super().__init__()
        self.policy, self.critics = policy, critics
        self.log_temperature = nn.Parameter(torch.zeros(1))

    def forward(self, observation: Tensor, action: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Return means and log deviations of the policy, `(batch, 2 * numbers)`.

        With an action and standard normal noise, `(batch, numbers)`, return what the loss needs,
        `(batch, 6)`: both critics of the action, both critics of a new action made of the noise, the
        log-density of the new action, and the log-temperature. The new action's gradients do not
        reach the critics' parameters.
        """
        chosen: Tensor = self.policy(observation.flatten(1))
        if action is None or noise is None:
            return chosen
        new, density = squashed.sample(chosen, noise)
        frozen = {name: value.detach() for name, value in self.critics.named_parameters()}
        judged = functional_call(self.critics, frozen, (observation, new))
        temperature = self.log_temperature.expand(len(new), 1)
        return torch.cat((self.critics(observation, action), judged, density.unsqueeze(1), temperature), dim=1)


def _layers(sizes: list[int], activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])

"""Environments of PettingZoo in which several agents act in the same steps, as ddl's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hvd_train.data.environments.base import Actions, Array
from hvd_train.data.environments.gym import actions_of, decoder, encoder, observed_shape
from hvd_train.errors import UserError

if TYPE_CHECKING:
    from pettingzoo import ParallelEnv


@dataclass(frozen=True)
class Perceived:
    """What each of `agents` agents perceives, in this order: its number, its observation, and those of all."""

    agents: int
    own: tuple[int, ...]
    """The shape of an agent's observation."""
    identify: bool
    """The number comes first, as one of `agents` numbers that is 1."""
    state: bool
    """The observations of all agents come last, for the value alone."""

    @property
    def policy_inputs(self) -> int:
        """The first numbers, which alone the policy may see; 0: all."""
        return self._before_state if self.state else 0

    @property
    def shape(self) -> tuple[int, ...]:
        if not (self.identify or self.state):
            return self.own
        return (self._before_state + self.state * self.agents * self._size,)

    def __call__(self, observed: Array) -> Array:
        """Return what is perceived, `(agents, *shape)`, for the observations `(agents, *own)`."""
        if not (self.identify or self.state):
            return observed
        flat = observed.reshape(self.agents, -1)
        parts = [np.eye(self.agents, dtype=np.float32)] if self.identify else []
        parts.append(flat)
        if self.state:
            parts.append(np.tile(flat.reshape(1, -1), (self.agents, 1)))
        return np.concatenate(parts, axis=1)

    @property
    def _size(self) -> int:
        return int(np.prod(self.own))

    @property
    def _before_state(self) -> int:
        return self.identify * self.agents + self._size


class ParallelEnvironment:
    """One environment. Agents keep the order of their names, and perceive zeros once their episode has ended."""

    success: bool | None = None

    def __init__(self, made: ParallelEnv[Any, Any, Any], perceived: Perceived) -> None:
        self._made, self._perceived = made, perceived
        self._names = list(made.possible_agents)
        self._live = set(self._names)
        self._encode = encoder(made.observation_space(self._names[0]))
        self._decode = decoder(made.action_space(self._names[0]))

    def reset(self, seed: int) -> Array:
        self._live = set(self._names)
        observed, _ = self._made.reset(seed=seed)
        return self._seen(observed)

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array]:
        live = {name: action for name, action in zip(self._names, actions, strict=True) if name in self._live}
        chosen = {name: self._decode(action) for name, action in live.items()}
        observed, rewards, terminated, truncated, _ = self._made.step(chosen)
        received = np.array([rewards[name] if name in live else 0.0 for name in self._names], float)
        seen = self._seen({name: observed[name] for name in live})
        flags = ([name in live and bool(of[name]) for name in self._names] for of in (terminated, truncated))
        ends, cuts = map(np.array, flags)
        self._live = {name for name, over in zip(self._names, ends | cuts, strict=True) if name in live and not over}
        return seen, received, ends, cuts

    def render(self) -> Array:
        return np.asarray(self._made.render())

    def close(self) -> None:
        self._made.close()

    def _seen(self, observed: dict[Any, Any]) -> Array:
        nothing = np.zeros(self._perceived.own, np.float32)
        encoded = [self._encode(observed[name]) if name in observed else nothing for name in self._names]
        return self._perceived(np.stack(encoded))


def alike(made: ParallelEnv[Any, Any, Any], name: str) -> tuple[tuple[int, ...], Actions]:
    """Return the shape of an observation and the actions of every agent; UserError if they differ."""
    found = {
        agent: (observed_shape(made.observation_space(agent), name), actions_of(made.action_space(agent), name))
        for agent in made.possible_agents
    }
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            (shape, actions), (shape2, actions2) = found[first], found[other]
            raise UserError(
                f"data: agent '{first}' of '{name}' perceives {shape} and chooses {actions}, agent '{other}' {shape2} and "
                f"{actions2}; expected equal ones (wrappers of the environment can pad them)"
            )
    return found[first]

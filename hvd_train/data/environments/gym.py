"""Environments of Gymnasium, as ddl's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hvd_train.data.environments.base import Actions, Array
from hvd_train.errors import UserError

if TYPE_CHECKING:
    from gymnasium import Env, spaces

Encode = Callable[[Any], Array]
"""Makes an array of float32 from an observation."""


class GymEnvironment:
    """One environment of Gymnasium with one agent."""

    def __init__(self, made: Env[Any, Any]) -> None:
        self.success: bool | None = None
        self._made = made
        self._encode = encoder(made.observation_space)
        self._decode = decoder(made.action_space)

    def reset(self, seed: int) -> Array:
        observed, _ = self._made.reset(seed=seed)
        return self._encode(observed)

    def step(self, actions: Array) -> tuple[Array, float, bool, bool]:
        observed, reward, terminated, truncated, info = self._made.step(self._decode(actions))
        if "is_success" in info:
            self.success = bool(info["is_success"])
        return self._encode(observed), float(reward), bool(terminated), bool(truncated)

    def render(self) -> Array:
        return np.asarray(self._made.render())

    def close(self) -> None:
        self._made.close()


def observed_shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    """Return the shape of an encoded observation of `space`."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        height, *rest = space.shape or (1,)
        return (rest[1], height, rest[0]) if _is_picture(space) else tuple(space.shape or (1,))
    return (int(spaces.flatdim(space)),)


def encoder(space: spaces.Space[Any]) -> Encode:
    """Return the function that encodes observations of `space` as float32.

    Numbers of a box keep their shape, pictures of bytes become channels first in [0, 1], one of n
    becomes n numbers of which one is 1, and nested observations one vector.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        if _is_picture(space):
            return lambda observed: np.moveaxis(np.asarray(observed, np.float32) / 255, -1, 0)
        shape = space.shape or (1,)
        return lambda observed: np.asarray(observed, np.float32).reshape(shape)
    if isinstance(space, spaces.Discrete):
        rows, start = np.eye(int(space.n), dtype=np.float32), int(space.start)
        return lambda observed: rows[int(observed) - start]
    return lambda observed: np.asarray(spaces.flatten(space, observed), np.float32)


def actions_of(space: spaces.Space[Any], name: str) -> Actions:
    """Return what `space` allows; UserError for a kind that no agent of ddl chooses from."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return Actions(choices=int(space.n))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return Actions(choices=int(np.prod(space.nvec)))
    if isinstance(space, spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
        low, high = (np.asarray(side, float).reshape(-1).tolist() for side in (space.low, space.high))
        return Actions(low=tuple(low), high=tuple(high))
    raise UserError(f"data: '{name}' takes actions of {space}; expected Discrete, MultiDiscrete or a bounded Box")


def decoder(space: spaces.Space[Any]) -> Callable[[Array], Any]:
    """Return the function that makes an action of `space` from a choice or from numbers."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return lambda action: int(action) + start
    if isinstance(space, spaces.MultiDiscrete):
        sizes, first = tuple(space.nvec.tolist()), space.start
        return lambda action: np.array(np.unravel_index(int(action), sizes)) + first
    assert isinstance(space, spaces.Box)
    low, high, shape, kind = space.low, space.high, space.shape, space.dtype
    return lambda action: np.clip(np.asarray(action, kind).reshape(shape), low, high)


def wrapped(made: Env[Any, Any], wrappers: Sequence[Mapping[str, Any]]) -> Env[Any, Any]:
    """Return `made` in the named wrappers of `gymnasium.wrappers`, the first innermost."""
    import gymnasium

    for options in wrappers:
        named = dict(options)
        made = getattr(gymnasium.wrappers, str(named.pop("name")))(made, **named)
    return made


def _is_picture(space: spaces.Box) -> bool:
    return space.dtype == np.uint8 and len(space.shape) == 3

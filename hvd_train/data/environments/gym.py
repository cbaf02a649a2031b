"""Environments of Gymnasium, as ddl's: spaces become shapes, arrays and `Actions`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hvd_train.config.targets import resolve
from hvd_train.data.environments.base import Actions, Array
from hvd_train.errors import UserError, install_remedy, nearest

if TYPE_CHECKING:
    from gymnasium import Env, spaces

Encode = Callable[[Any], Array]
"""Makes an array of float32 from an observation."""

MOST_CHOICES = 10_000
"""Most combinations of actions that are chosen from by one number."""
_CHANNELS = (1, 3, 4)
"""Values of a pixel, if they come last."""
_COLOUR = re.compile(r"\x1b\[\d*m")


class GymEnvironment:
    """One environment of Gymnasium with one agent."""

    def __init__(self, made: Env[Any, Any]) -> None:
        self.success: bool | None = None
        self._made = made
        self._encode = encoder(made.observation_space)
        self._decode = decoder(made.action_space)

    def reset(self, seed: int) -> Array:
        self.success = None if self.success is None else False
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


def observed_shape(space: spaces.Space[Any], name: str) -> tuple[int, ...]:
    """Return the shape of an encoded observation of `space`; UserError for one that has no fixed size."""
    if not space.is_np_flattenable:
        raise UserError(f"data: '{name}' has observations of {space}; expected arrays of a fixed size, or a wrapper")
    return tuple(encoder(space)(space.sample()).shape)


def time_limit(made: Env[Any, Any]) -> int | None:
    """Return the steps after which `made` cuts an episode off; None if it does not say."""
    stated: int | None = getattr(made.spec, "max_episode_steps", None)
    if stated is None and made.has_wrapper_attr("_max_episode_steps"):  # of TimeLimit, where there is no spec
        stated = made.get_wrapper_attr("_max_episode_steps")
    return stated


def states_of(space: spaces.Space[Any]) -> int:
    """Return the number of states of which an observation is one; 0 if it is none of a list."""
    from gymnasium import spaces

    return int(space.n) if isinstance(space, spaces.Discrete) else 0


def encoder(space: spaces.Space[Any]) -> Encode:
    """Return the function that encodes observations of `space` as float32.

    Numbers of a box keep their shape. Bytes from 0 to 255 become numbers in [0, 1], and pictures of
    them channels first. One of n becomes n numbers of which one is 1, and nested observations one
    vector.
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        return _box(space)
    if isinstance(space, spaces.Discrete):
        number, start = int(space.n), int(space.start)
        return lambda observed: _one_hot(number, int(observed) - start)
    if isinstance(space, spaces.Dict):
        parts = {name: encoder(part) for name, part in space.items()}
        return lambda observed: np.concatenate([encode(observed[name]).ravel() for name, encode in parts.items()])
    if isinstance(space, spaces.Tuple):
        encoders = [encoder(part) for part in space]
        return lambda observed: np.concatenate([e(o).ravel() for e, o in zip(encoders, observed, strict=True)])
    return lambda observed: np.asarray(spaces.flatten(space, observed), np.float32)


def actions_of(space: spaces.Space[Any], name: str) -> Actions:
    """Return what `space` allows; UserError for a kind that no agent of ddl chooses from."""
    from gymnasium import spaces

    sizes = _sizes(space)
    if sizes:
        choices = int(np.prod(sizes, dtype=float))
        if choices > MOST_CHOICES:
            raise UserError(f"data: '{name}' has {choices} combinations of actions; expected at most {MOST_CHOICES}")
        return Actions(choices=choices)
    if isinstance(space, spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
        low, high = (np.asarray(side, float).reshape(-1).tolist() for side in (space.low, space.high))
        return Actions(low=tuple(low), high=tuple(high))
    raise UserError(
        f"data: '{name}' takes actions of {space}; expected Discrete, MultiDiscrete, MultiBinary or a bounded Box"
    )


def decoder(space: spaces.Space[Any]) -> Callable[[Array], Any]:
    """Return the function that makes an action of `space` from a choice or from numbers."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return lambda action: int(action) + start
    sizes = _sizes(space)
    if sizes:
        first, form, integer = getattr(space, "start", 0), space.shape, space.dtype
        return lambda action: (np.array(np.unravel_index(int(action), sizes)).reshape(form) + first).astype(integer)
    assert isinstance(space, spaces.Box)
    low, high, shape, kind = space.low, space.high, space.shape, space.dtype
    # Whole numbers and their limits are float64 in between: a byte would overflow before it is cut off.
    near = np.rint if np.issubdtype(kind, np.integer) else np.asarray
    return lambda action: np.clip(near(np.asarray(action, float).reshape(shape)), low, high).astype(kind)


def wrapped(made: Env[Any, Any], wrappers: Sequence[Mapping[str, Any]]) -> Env[Any, Any]:
    """Return `made` in the named wrappers of `gymnasium.wrappers`, the first innermost.

    A name `package.module:callable` is a wrapper of the user. UserError for an unknown name or option.
    """
    import gymnasium

    known = {
        name: value
        for name, value in vars(gymnasium.wrappers).items()
        if isinstance(value, type) and issubclass(value, gymnasium.Wrapper)
    }
    for number, options in enumerate(wrappers):
        where = f"data.wrappers.{number}"
        if "name" not in options:
            raise UserError(f"{where}: 'name' is missing; expected that of a wrapper of gymnasium.wrappers")
        # Gymnasium takes sizes as tuples, which YAML has not.
        named = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        name = str(named.pop("name"))
        if ":" not in name and name not in known:
            raise UserError(f"{where}: no wrapper '{name}' in gymnasium.wrappers{nearest(name, known)}")
        wrapper = resolve(name) if ":" in name else known[name]
        try:
            made = wrapper(made, **named)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{where}: '{name}' with {named or 'no options'}: {error}") from error
    return made


def library(env: str) -> Any:
    """Return gymnasium; UserError, which says what needs it, if it is not installed."""
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise UserError(f"data: '{env}' needs gymnasium, which is not installed; {install_remedy('agents')}") from error
    return gymnasium


@contextmanager
def first_warnings(found: list[str]) -> Iterator[None]:
    """Add what Gymnasium warns of within the block to `found`; afterwards it is silent.

    Each copy on each rank would repeat it.
    """
    import gymnasium

    gymnasium.logger.min_level = gymnasium.logger.WARN
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        gymnasium.logger.min_level = gymnasium.logger.ERROR
    texts = [_COLOUR.sub("", str(warning.message)) for warning in caught]
    found += [f"data: {text.removeprefix('WARN: ')}" for text in texts if text.startswith("WARN: ")]


def _box(space: spaces.Box) -> Encode:
    shape = space.shape or (1,)
    if not (space.dtype == np.uint8 and space.high.max() == 255):
        return lambda observed: np.asarray(observed, np.float32).reshape(shape)
    if len(shape) == 1:
        return lambda observed: np.asarray(observed, np.float32) / 255
    if len(shape) == 2:
        return lambda observed: np.asarray(observed, np.float32)[np.newaxis] / 255
    channels = -3 if shape[-3] < shape[-1] and shape[-1] not in _CHANNELS else -1
    size = tuple(n for axis, n in enumerate(shape[-3:], -3) if axis != channels)
    # Frames that are stacked are further channels.
    return lambda observed: (np.moveaxis(np.asarray(observed, np.float32), channels, -3) / 255).reshape(-1, *size)


def _one_hot(number: int, one: int) -> Array:
    encoded = np.zeros(number, np.float32)
    encoded[one] = 1
    return encoded


def _sizes(space: spaces.Space[Any]) -> tuple[int, ...]:
    """Return how many values each part of an action of `space` has; empty for numbers."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(space.nvec.reshape(-1).tolist())
    return (2,) * int(np.prod(space.shape)) if isinstance(space, spaces.MultiBinary) else ()

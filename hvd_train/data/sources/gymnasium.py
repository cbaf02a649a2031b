"""Environments of Gymnasium by their id, such as CartPole-v1, in which an agent acts and learns."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from hvd_train.config.options import Annotated, NonNegativeInt, PositiveInt
from hvd_train.config.targets import resolve
from hvd_train.data.base import Dataset
from hvd_train.data.environments import gym
from hvd_train.data.environments.base import MOST_STEPS, Environments, as_dataset
from hvd_train.errors import UserError, install_remedy, nearest

_RENDERED = {"render_mode": "rgb_array"}


def create(
    *,
    env: Annotated[str, "id of the environment, as CartPole-v1; or package.module:callable that returns one"],
    envs: Annotated[PositiveInt, "copies of the environment on each worker"] = 8,
    steps: Annotated[PositiveInt, "steps of each copy in an epoch"] = 128,
    episodes: Annotated[NonNegativeInt, "episodes of each evaluation"] = 20,
    seed: Annotated[NonNegativeInt, "seed of the episodes of evaluations"] = 0,
    arguments: Annotated[dict[str, Any], "keyword arguments of the environment"] = {},
    variants: Annotated[
        list[dict[str, Any]], "further keyword arguments; copies get them in turn, so that environments differ"
    ] = [],
    wrappers: Annotated[
        list[str | dict[str, Any]], "wrappers of gymnasium.wrappers, as {name: FrameStackObservation, stack_size: 4}"
    ] = [],
    max_steps: Annotated[
        PositiveInt | None, "steps after which an episode is cut off; by default the limit of the environment"
    ] = None,
) -> Dataset:
    """Return environments. Raise UserError without gymnasium, and for an unknown id or option."""
    named = [{"name": one} if isinstance(one, str) else one for one in wrappers]
    make = functools.partial(_make, env, arguments, variants, named)
    first = make(0)
    try:
        observed, actions = gym.observed_shape(first.observation_space), gym.actions_of(first.action_space, env)
        limit = max_steps or getattr(first.spec, "max_episode_steps", None)
        threshold = getattr(first.spec, "reward_threshold", None)
        frame_rate = float(first.metadata.get("render_fps") or Environments.frame_rate)
    finally:
        first.close()
    warnings = () if limit else (f"data: '{env}' has no time limit: episodes are cut off after {MOST_STEPS} steps",)
    made = Environments(
        env,
        lambda number, *, pictures=False: gym.GymEnvironment(make(number, **_RENDERED if pictures else {})),
        observed,
        actions,
        envs,
        steps,
        limit or MOST_STEPS,
        threshold=threshold,
        frame_rate=frame_rate,
    )
    return as_dataset(made, episodes, seed, warnings)


def _make(
    env: str,
    arguments: Mapping[str, Any],
    variants: Sequence[Mapping[str, Any]],
    wrappers: Sequence[Mapping[str, Any]],
    number: int,
    **more: Any,
) -> Any:
    """Return the copy `number` of the environment `env`; UserError if it cannot be made."""
    gymnasium = _library(env)
    chosen = {**arguments, **(variants[number % len(variants)] if variants else {}), **more}
    try:
        made = resolve(env)(**chosen) if ":" in env else gymnasium.make(env, disable_env_checker=True, **chosen)
        return gym.wrapped(made, wrappers)
    except gymnasium.error.Error as error:
        raise UserError(f"data.env: '{env}': {error}{nearest(env, list(gymnasium.registry))}") from error
    except (AttributeError, TypeError) as error:
        raise UserError(f"data: '{env}' with {chosen or 'no options'}: {error}") from error


def _library(env: str) -> Any:
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise UserError(f"data: '{env}' needs gymnasium, which is not installed; {install_remedy('agents')}") from error
    return gymnasium

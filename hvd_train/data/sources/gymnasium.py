"""Environments of Gymnasium by their id, such as CartPole-v1, in which an agent acts and learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hvd_train.config.options import (
    Annotated,
    CutAt,
    EnvArguments,
    EnvCopies,
    EnvVariants,
    EpisodeSeed,
    EpisodeSteps,
    EvaluationEpisodes,
    RolloutSteps,
    VariantsBy,
)
from hvd_train.config.targets import resolve
from hvd_train.data.base import Dataset
from hvd_train.data.environments import gym
from hvd_train.data.environments.base import MOST_STEPS, Environments, as_dataset
from hvd_train.data.environments.checking import problems
from hvd_train.errors import UserError, nearest

_RENDERED = {"render_mode": "rgb_array"}


def create(
    *,
    env: Annotated[str, "id of the environment, as CartPole-v1; or package.module:callable that returns one"],
    envs: EnvCopies = 8,
    steps: RolloutSteps = 128,
    episodes: EvaluationEpisodes = 20,
    seed: EpisodeSeed = 0,
    arguments: EnvArguments = {},
    variants: EnvVariants = [],
    variants_by: VariantsBy = "copy",
    wrappers: Annotated[
        list[str | dict[str, Any]],
        "wrappers of gymnasium.wrappers or package.module:callable, the first innermost, as "
        "{name: FrameStackObservation, stack_size: 4}",
    ] = [],
    max_steps: EpisodeSteps = None,
    cut_at: CutAt = None,
) -> Dataset:
    """Return environments. Raise UserError without gymnasium, and for an unknown id or option."""
    gym.library(env)
    named = [{"name": one} if isinstance(one, str) else one for one in wrappers]
    different = variants or [{}]

    def make(number: int, *, pictures: bool = False) -> Any:
        rendered = _RENDERED if pictures else {}
        return _make(env, named, {**arguments, **different[number % len(different)], **rendered})

    warnings: list[str] = []
    with gym.first_warnings(warnings):
        first = make(0)
    try:
        observed, actions = gym.observed_shape(first.observation_space, env), gym.actions_of(first.action_space, env)
        states = gym.states_of(first.observation_space)
        limit = max_steps or gym.time_limit(first)
        threshold = getattr(first.spec, "reward_threshold", None)
        frame_rate = float(first.metadata.get("render_fps") or Environments.frame_rate)
    finally:
        first.close()
    made = Environments(
        env,
        lambda number, *, pictures=False: gym.GymEnvironment(make(number, pictures=pictures)),
        observed,
        actions,
        envs,
        steps,
        limit or MOST_STEPS,
        threshold=threshold,
        frame_rate=frame_rate,
        cut_at=cut_at,
        states=states,
    )
    return as_dataset(made, episodes, seed, (*warnings, *problems(made, limit, len(different))), variants_by)


def _make(env: str, wrappers: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Any:
    """Return the environment `env`; UserError if it cannot be made."""
    import gymnasium

    # An id of Gymnasium may name the module that registers it, as ale_py:ALE/Pong-v5.
    is_target = env.partition(":")[2].isidentifier()
    try:
        made = resolve(env)(**options) if is_target else gymnasium.make(env, disable_env_checker=True, **options)
    except UserError:
        raise
    except gymnasium.error.NamespaceNotFound as error:
        raise UserError(f"data.env: '{env}' is not installed: {error}") from error
    except gymnasium.error.UnregisteredEnv as error:
        raise UserError(f"data.env: Gymnasium has no '{env}'{nearest(env, gymnasium.registry)}") from error
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(f"data.env: '{env}' needs a package: {error}") from error
    except Exception as error:
        raise UserError(f"data: '{env}' with {options or 'no options'}: {type(error).__name__}: {error}") from error
    if not isinstance(made, gymnasium.Env):
        raise UserError(f"data.env: '{env}' returned {type(made).__name__}, expected a gymnasium.Env")
    return gym.wrapped(made, wrappers)

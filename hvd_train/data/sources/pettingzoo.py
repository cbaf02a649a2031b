"""Environments of PettingZoo, in which several agents act in the same steps and learn together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
from hvd_train.data.environments.parallel import ParallelEnvironment, Perceived, alike
from hvd_train.errors import UserError, install_remedy

_RENDERED = {"render_mode": "rgb_array"}


def create(
    *,
    env: Annotated[
        str,
        "module of the environment, as pettingzoo.butterfly.pistonball_v6, whose parallel_env is taken; or "
        "package.module:callable that returns a ParallelEnv. All agents perceive and act alike",
    ],
    envs: EnvCopies = 8,
    steps: RolloutSteps = 128,
    episodes: EvaluationEpisodes = 20,
    seed: EpisodeSeed = 0,
    arguments: EnvArguments = {},
    variants: EnvVariants = [],
    variants_by: VariantsBy = "copy",
    max_steps: EpisodeSteps = None,
    cut_at: CutAt = None,
    identify: Annotated[
        bool, "let each observation begin with the number of its agent, so that agents can act in different ways"
    ] = False,
    state: Annotated[
        bool, "let the value see the observations of all agents, in training; the policy still sees those of its agent"
    ] = False,
) -> Dataset:
    """Return environments whose agents share a policy. Raise UserError for an unknown name or option."""
    _require(env)
    different = variants or [{}]

    def make(number: int, *, pictures: bool = False) -> Any:
        return _make(env, {**arguments, **different[number % len(different)], **(_RENDERED if pictures else {})})

    warnings: list[str] = []
    with gym.first_warnings(warnings):
        first = make(0)
    try:
        own, actions = alike(first, env)
        limit = max_steps or getattr(first.unwrapped, "max_cycles", None)
        frame_rate = float(first.metadata.get("render_fps") or Environments.frame_rate)
        perceived = Perceived(len(first.possible_agents), own, identify, state)
    finally:
        first.close()
    if perceived.shape != own and len(own) == 3:
        raise UserError(
            f"data.{'identify' if identify else 'state'}: agents of '{env}' perceive pictures, expected vectors"
        )
    made = Environments(
        env,
        lambda number, *, pictures=False: ParallelEnvironment(make(number, pictures=pictures), perceived),
        perceived.shape,
        actions,
        envs,
        steps,
        limit or MOST_STEPS,
        perceived.agents,
        frame_rate=frame_rate,
        cut_at=cut_at,
    )
    data = as_dataset(made, episodes, seed, (*warnings, *problems(made, limit, len(different))), variants_by)
    numbered = perceived.agents if identify else 0
    return replace(data, spec=replace(data.spec, agents=numbered, policy_inputs=perceived.policy_inputs))


def _make(env: str, options: Mapping[str, Any]) -> Any:
    """Return the environment `env`; UserError if it cannot be made."""
    from pettingzoo import ParallelEnv

    function = resolve(env if ":" in env else f"{env}:parallel_env")
    try:
        made = function(**options)
    except Exception as error:
        raise UserError(f"data: '{env}' with {options or 'no options'}: {type(error).__name__}: {error}") from error
    if not isinstance(made, ParallelEnv):
        raise UserError(f"data.env: '{env}' returned {type(made).__name__}, expected a pettingzoo.ParallelEnv")
    return made


def _require(env: str) -> None:
    gym.library(env)
    try:
        import pettingzoo  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"data: '{env}' needs pettingzoo, which is not installed; {install_remedy('agents')}"
        ) from error

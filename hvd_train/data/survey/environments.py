"""What `ddl data show` says about environments, in which an agent acts."""

from __future__ import annotations

from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from hvd_train.data.environments.base import Array, Environments
from hvd_train.data.environments.copies import Copies, Finished, episode_seed

EPISODES = 20
"""Episodes that a random policy plays."""
_SURVEY = 9
"""The stream of seeds of these episodes."""


def environments(found: Environments, seed: int) -> dict[str, Any]:
    """Return what an agent perceives and does in `found`, and what a random policy is rewarded with, as JSON."""
    played = random_episodes(found, seed)
    returns = [episode.returned for episode in played]
    return {
        "name": found.name,
        "observation": list(found.observed),
        "actions": str(found.actions),
        "agents": found.agents,
        "most_steps": found.most_steps,
        "threshold": found.threshold,
        "copies": found.copies,
        "steps": found.steps,
        "random": {
            "episodes": len(played),
            "return": fmean(returns),
            "return_min": min(returns),
            "return_max": max(returns),
            "episode_length": fmean(episode.length for episode in played),
        },
    }


def random_episodes(found: Environments, seed: int) -> list[Finished]:
    """Return `EPISODES` episodes of a policy that draws each action uniformly."""
    generator = np.random.default_rng(seed)
    copies = Copies(found, range(EPISODES))
    seed_of = partial(episode_seed, seed, _SURVEY)
    first: dict[int, Finished] = {}
    try:
        copies.start(seed_of)
        while len(first) < EPISODES:
            copies.step(_actions(found, generator), seed_of)
            for episode in copies.finished:
                first.setdefault(episode.copy, episode)
            copies.finished.clear()
    finally:
        copies.close()
    return list(first.values())


def _actions(found: Environments, generator: np.random.Generator) -> Array:
    rows, actions = EPISODES * found.agents, found.actions
    if actions.choices:
        return generator.integers(actions.choices, size=rows)
    return generator.uniform(actions.low, actions.high, (rows, actions.numbers)).astype(np.float32)

"""What is wrong with an environment, before an agent learns in it."""

from __future__ import annotations

import numpy as np

from hvd_train.data.environments.base import Array, Environments
from hvd_train.data.environments.copies import Copies

STEPS = 16
"""Steps that are played twice."""
_MOST_VARIANTS = 8


def problems(environments: Environments, limit: int | None, variants: int) -> tuple[str, ...]:
    """Return warnings about environments whose episodes have `limit` steps at most, None if they do not say.

    Copies differ by their number modulo `variants`. UserError if one fails in its first steps.
    """
    endless = _ENDLESS.format(environments.name, environments.most_steps)
    different = _DIFFERENT.format(environments.name)
    return (
        *(() if limit else (endless,)),
        *(() if repeats(environments, min(variants, _MOST_VARIANTS)) else (different,)),
    )


def repeats(environments: Environments, number: int = 1) -> bool:
    """Return True if a few steps of the copies below `number` are equal to those of others that are alike.

    The first ones have played another episode before.
    """
    actions = np.random.default_rng(0)
    plays = [Copies(environments, range(number)) for _ in range(2)]
    try:
        plays[0].start(lambda copy: 1)
        plays[0].step(_drawn(environments, number, actions), lambda copy: 1)
        for copies in plays:
            copies.start(lambda copy: 0)
        same = np.array_equal(plays[0].observations, plays[1].observations)
        for _ in range(STEPS):
            action = _drawn(environments, number, actions)
            first, second = (copies.step(action, lambda copy: 0) for copies in plays)
            same = same and all(map(np.array_equal, first, second))
    finally:
        for copies in plays:
            copies.close()
    return same


_ENDLESS = "data: '{}' states no time limit: its episodes are cut off after {} steps (data.max_steps)"
_DIFFERENT = (
    "data: '{}' gives different episodes for the same seed and actions: two runs differ, and a resumed run does not "
    "continue its episodes; let reset(seed=...) seed all that is random in it"
)


def _drawn(environments: Environments, number: int, generator: np.random.Generator) -> Array:
    """Return random actions of `number` copies."""
    actions, rows = environments.actions, number * environments.agents
    if actions.choices:
        return generator.integers(actions.choices, size=rows)
    return generator.uniform(actions.low, actions.high, (rows, actions.numbers)).astype(np.float32)

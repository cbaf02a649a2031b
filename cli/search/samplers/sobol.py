"""A scrambled Sobol sequence, which fills the space more evenly than random values.

The field of a condition and those that depend on it get random values wherever the first trial
lacks them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.search.quiet import quiet

if TYPE_CHECKING:
    import optuna

    from cli.search.pruner import Pruner
    from cli.search.space import Space


class Sobol:
    def optuna(self, space: Space, seed: int, trials: int = 0) -> optuna.samplers.BaseSampler:
        from optuna.samplers import QMCSampler, RandomSampler

        with quiet():
            # The study counts the points of the sequence of `seed`. Other values are random.
            return QMCSampler(
                qmc_type="sobol",
                scramble=True,
                seed=seed,
                independent_sampler=RandomSampler(seed=seed + trials),
                warn_independent_sampling=False,
            )

    def pruner(self) -> Pruner | None:
        return None


def create() -> Sobol:
    return Sobol()

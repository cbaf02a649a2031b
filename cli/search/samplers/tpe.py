"""Tree-structured Parzen estimator (Bergstra et al., 2011): prefers values near those of good trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.search.quiet import quiet
from hvd_train.config.options import Annotated, PositiveInt

if TYPE_CHECKING:
    import optuna

    from cli.search.pruner import Pruner
    from cli.search.space import Space


class TPE:
    def __init__(self, startup: int) -> None:
        self._startup = startup

    def optuna(self, space: Space, seed: int, trials: int = 0) -> optuna.samplers.BaseSampler:
        from optuna.samplers import TPESampler

        with quiet():
            # Values of one member of a family depend on one another: joint densities, one for each condition.
            # Running trials count as bad ones, so that parallel trials differ.
            return TPESampler(
                seed=seed + trials, n_startup_trials=self._startup, multivariate=True, group=True, constant_liar=True
            )

    def pruner(self) -> Pruner | None:
        return None


def create(*, startup: Annotated[PositiveInt, "random trials before the first that learns from others"] = 10) -> TPE:
    return TPE(startup)

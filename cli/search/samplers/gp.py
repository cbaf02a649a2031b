"""A Gaussian process and expected improvement (Jones et al., 1998); for few and long trials, needs SciPy and torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.search.quiet import quiet
from hvd_train.config.options import Annotated, PositiveInt

if TYPE_CHECKING:
    import optuna

    from cli.search.pruner import Pruner
    from cli.search.space import Space


class GaussianProcess:
    def __init__(self, startup: int) -> None:
        self._startup = startup

    def optuna(self, space: Space, seed: int, trials: int = 0) -> optuna.samplers.BaseSampler:
        from optuna.samplers import GPSampler

        with quiet():
            return GPSampler(seed=seed + trials, n_startup_trials=self._startup, warn_independent_sampling=False)

    def pruner(self) -> Pruner | None:
        return None


def create(
    *, startup: Annotated[PositiveInt, "random trials before the first that learns from others"] = 10
) -> GaussianProcess:
    return GaussianProcess(startup)

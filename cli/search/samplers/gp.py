"""A Gaussian process and expected improvement (Jones et al., 1998); for few and long trials, needs SciPy and torch."""

from __future__ import annotations

import importlib
from contextlib import suppress
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
            _import_optimizer()
            return GPSampler(seed=seed + trials, n_startup_trials=self._startup, warn_independent_sampling=False)

    def pruner(self) -> Pruner | None:
        return None


def _import_optimizer() -> None:
    """Import the optimizer of the sampler, which logs once that it would be faster with the package greenlet."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with suppress(ImportError):  # a private module
        importlib.import_module("optuna._gp.batched_lbfgsb")
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def create(
    *, startup: Annotated[PositiveInt, "random trials before the first that learns from others"] = 10
) -> GaussianProcess:
    return GaussianProcess(startup)

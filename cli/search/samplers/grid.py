"""Every point of the space once, in random order; for choices, whole numbers and ranges with a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli.search.quiet import quiet
from hvd_train.errors import UserError

if TYPE_CHECKING:
    import optuna

    from cli.search.pruner import Pruner
    from cli.search.space import Space


class Grid:
    """Points of trials that failed, that constraints do not allow, or that run, are not drawn again.

    After the last point, which is the `size()` of the space, points repeat.
    """

    def optuna(self, space: Space, seed: int, trials: int = 0) -> optuna.samplers.BaseSampler:
        from optuna.samplers import BruteForceSampler

        class Points(BruteForceSampler):
            def after_trial(self, *arguments: Any) -> None:
                """Do not call `study.stop()` after the last point: it is an error outside of `study.optimize`."""

        for dimension in space.dimensions:
            if dimension.domain.count() is None:
                raise UserError(
                    f"{dimension.place}: {dimension.field}: {dimension.domain} has no end of values for the sampler grid; "
                    "expected a list, a step such as uniform(0, 1, 0.1), or another sampler"
                )
        with quiet():
            return Points(seed=seed + trials)

    def pruner(self) -> Pruner | None:
        return None


def create() -> Grid:
    return Grid()

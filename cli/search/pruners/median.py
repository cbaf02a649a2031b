"""A trial ends if its best value is worse than the median of the complete trials at the same evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.search.ending import EndingPruner
from hvd_train.config.options import Annotated, NonNegativeInt

if TYPE_CHECKING:
    import optuna


def create(
    *,
    startup: Annotated[NonNegativeInt, "complete trials before the first that ends early"] = 5,
    warmup: Annotated[NonNegativeInt, "evaluations of a trial before the first after which it may end"] = 0,
) -> EndingPruner:
    def make() -> optuna.pruners.BasePruner:
        from optuna.pruners import MedianPruner

        return MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)

    return EndingPruner(make)

"""A trial ends if its own best value has not improved for some evaluations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.search.ending import EndingPruner
from hvd_train.config.options import Annotated, NonNegativeFloat, PositiveInt

if TYPE_CHECKING:
    import optuna


def create(
    *,
    patience: Annotated[PositiveInt, "evaluations without a better value that do not end the trial yet"] = 5,
    min_delta: Annotated[
        NonNegativeFloat, "a value may be worse than the best one by this much and counts as good"
    ] = 0.0,
) -> EndingPruner:
    def make() -> optuna.pruners.BasePruner:
        from optuna.pruners import PatientPruner

        return PatientPruner(None, patience, min_delta)

    return EndingPruner(make)

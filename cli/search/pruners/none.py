"""No trial ends early."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.search.pruner import Continuation

if TYPE_CHECKING:
    import optuna

    from cli.search.space import Space


class NoPruner:
    def stops(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return False

    def continuation(self, study: optuna.Study, space: Space) -> Continuation | None:
        return None


def create() -> NoPruner:
    return NoPruner()

"""Pruners that end trials by a rule of Optuna and continue none."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from cli.search.pruner import Continuation
from cli.search.quiet import quiet

if TYPE_CHECKING:
    import optuna

    from cli.search.space import Space


class EndingPruner:
    def __init__(self, make: Callable[[], optuna.pruners.BasePruner]) -> None:
        """`make` returns the pruner of Optuna; it imports Optuna."""
        self._make = make

    def stops(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        with quiet():
            pruner = self._make()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, if all values are nan
            return bool(pruner.prune(study, trial))

    def continuation(self, study: optuna.Study, space: Space) -> Continuation | None:
        return None

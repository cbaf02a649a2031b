"""The contract of a sampler, which chooses the values of the next trial.

A sampler is a file in `cli/search/samplers` whose `create(**options)` returns a `Sampler`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cli.search.pruner import Pruner
from cli.search.space import Space

if TYPE_CHECKING:
    import optuna


class Sampler(Protocol):
    def optuna(self, space: Space, seed: int, trials: int = 0) -> optuna.samplers.BaseSampler:
        """Return the sampler of Optuna for `space`; UserError if it cannot search it.

        `trials` is the number of trials that the study has, so that a resumed search does not draw
        the values of its first trials again.
        """

    def pruner(self) -> Pruner | None:
        """Return the pruner that the sampler needs, None if any will do."""

"""The contract of a pruner, which ends trials early and continues trials that ended.

A pruner is a file in `cli/search/pruners` whose `create(**options)` returns a `Pruner`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import optuna

    from cli.search.space import Space


@dataclass(frozen=True)
class Continuation:
    """A trial to start from the newest checkpoint of the trial with the number `source`.

    `params` are the parameters of Optuna. If they are those of the source, the trial goes on in the
    source's run folder; otherwise it copies the checkpoint to a folder of its own.
    """

    source: int
    params: dict[str, Any]


class Pruner(Protocol):
    """Both methods only read the study. Steps of intermediate values are numbers of evaluations, from 1."""

    def stops(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Return True if the running `trial` has to stop after its newest intermediate value."""

    def continuation(self, study: optuna.Study, space: Space) -> Continuation | None:
        """Return an ended trial to continue now, None to start a new one.

        The caller adds the continuation to the study, with the user attribute `continues`.
        """

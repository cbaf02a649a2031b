"""How much of the variance of the objectives each field explains (fANOVA, Hutter et al., ICML 2014)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from cli.tune.show.search import Absent, Search

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

LEAST = 4
"""Complete trials that the estimate needs."""
MOST = 300
"""Complete trials that the estimate uses. Its time grows with their square; 2,000 take minutes."""
SEED = 0


@dataclass(frozen=True)
class Importances:
    """The share of each field, the largest first, for each objective.

    `left_out` are fields that some complete trials do not vary. `trials` of the `complete` trials
    were used.
    """

    shares: list[dict[str, float]]
    left_out: list[str]
    trials: int
    complete: int


@lru_cache(maxsize=1)
def importances(search: Search) -> Importances:
    """Return the importances of the fields that all complete trials vary; Absent if there are none."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    complete = search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    usable = [trial for trial in complete if all(map(math.isfinite, trial.values))]
    if len(usable) < LEAST:
        raise Absent(f"Importance needs {LEAST} complete trials; there are {len(usable)}.")
    common = set.intersection(*(set(trial.params) for trial in complete))
    if not common:
        raise Absent("No field is varied in all complete trials, so their importances cannot be compared.")

    study = search.study if len(complete) <= MOST else _thinned(search.study, usable)

    def share(index: int) -> dict[str, float]:
        def target(trial: FrozenTrial) -> float:
            return float(trial.values[index])

        if len({target(trial) for trial in usable}) == 1:
            return dict.fromkeys(sorted(common), 0.0)
        return get_param_importances(
            study, evaluator=FanovaImportanceEvaluator(seed=SEED), params=sorted(common), target=target
        )

    shares = [share(index) for index in range(len(search.objectives))]
    return Importances(
        shares,
        [field.name for field in search.fields if field.name not in common],
        min(MOST, len(usable)),
        len(complete),
    )


def _thinned(study: optuna.Study, trials: list[FrozenTrial]) -> optuna.Study:
    """Return a study of `MOST` of the trials, at equal distances."""
    from optuna.study import create_study

    thinned = create_study(directions=study.directions)
    thinned.add_trials([trials[i * len(trials) // MOST] for i in range(min(MOST, len(trials)))])
    return thinned

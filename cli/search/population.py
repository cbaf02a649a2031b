"""Population based training (Jaderberg et al., 2017, arXiv 1711.09846).

A trial is one generation of a member of the population. It ends after some evaluations. If its value
is then among the worst, the member goes on with the checkpoint and perturbed values of one of the
best members (exploit and explore); otherwise it goes on with its own. No member waits for others:
it is compared with the newest value of each.

All state is in the study. Ended trials are followed in the order of their ends. A trial with the
parameters of its source follows the source. So the k trials with other parameters than their sources
follow the first k ended trials that nothing else follows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cli.search.perturb import perturbed
from cli.search.pruner import Continuation
from cli.search.records import CONTINUES, INFEASIBLE
from hvd_train.text import strict_json

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from cli.search.space import Space

ATTEMPTS = 100
"""Draws of perturbed values until they are new and satisfy the constraints."""
TOTAL = "trials"
"""User attribute of the study: the number of trials that continue no other."""


@dataclass(frozen=True)
class Population:
    size: int
    every: int
    """Evaluations of a generation."""
    quantile: float
    """Part of the members that are the worst, and the best."""
    factor: float
    resample: float
    """Probability that a value is drawn anew."""

    def stops(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        count = len(_own_steps(study.get_trials(deepcopy=False), trial))
        return count > 0 and count % self.every == 0

    def continuation(self, study: optuna.Study, space: Space) -> Continuation | None:
        trials = study.get_trials(deepcopy=False)
        members = _members(trials)
        started = sum(CONTINUES not in t.user_attrs and INFEASIBLE not in t.user_attrs for t in trials)
        if len(members) < self.size and started < study.user_attrs.get(TOTAL, self.size):
            return None
        ready = sorted((t for t in members if t.state.name == "PRUNED"), key=_end)
        if not ready:
            return None
        sign = 1 if study.direction.name == "MAXIMIZE" else -1
        return self._exploit(trials, members, ready[0], sign, space) or Continuation(ready[0].number, ready[0].params)

    def _exploit(
        self, trials: Sequence[FrozenTrial], members: Sequence[FrozenTrial], ended: FrozenTrial, sign: int, space: Space
    ) -> Continuation | None:
        """Return a perturbed copy of one of the best members if `ended` is one of the worst."""
        values = {t.number: v for t in members if (v := _newest_value(trials, t, sign)) is not None}
        ranked = sorted(values, key=lambda number: (-values[number], number))
        count = min(max(1, int(len(ranked) * self.quantile)), len(ranked) // 2)
        if ended.number not in ranked[len(ranked) - count :]:
            return None
        best = (_ended(trials, trials[n]) for n in ranked[:count] if values[n] > values[ended.number])
        sources = [source for source in best if source is not None]
        if not sources:
            return None
        chance = random.Random(strict_json.dumps([ended.number, ended.params]))
        source = chance.choice(sources)
        taken = [source.params, *(_params(t) for t in trials if t.user_attrs.get(CONTINUES) == source.number)]
        for _ in range(ATTEMPTS):
            values_ = perturbed(space, space.values(source.params), chance, self.factor, self.resample)
            params = space.params(values_)
            if params not in taken and space.admits(values_):
                return Continuation(source.number, params)
        return None


def _members(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the newest trial of each member that did not complete or fail."""
    followed = _followed(trials)
    return [
        t
        for t in trials
        if t.state.name in ("WAITING", "RUNNING", "PRUNED")
        and t.number not in followed
        and INFEASIBLE not in t.user_attrs
    ]


def _followed(trials: Sequence[FrozenTrial]) -> set[int]:
    """Return the numbers of the trials of which a member has a newer one."""
    later = [t for t in trials if CONTINUES in t.user_attrs and INFEASIBLE not in t.user_attrs]
    followed = {t.user_attrs[CONTINUES] for t in later if _is_in_place(trials, t)}
    # A second attempt of a trial has its source and its parameters too.
    copies = {
        strict_json.dumps([t.user_attrs[CONTINUES], sorted(_params(t).items())])
        for t in later
        if not _is_in_place(trials, t)
    }
    others = sorted((t for t in trials if t.state.name == "PRUNED" and t.number not in followed), key=_end)
    return followed | {t.number for t in others[: len(copies)]}


def _end(trial: FrozenTrial) -> tuple[float, int]:
    return (trial.datetime_complete.timestamp() if trial.datetime_complete else math.inf, trial.number)


def _params(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters of `trial`, which Optuna holds apart until the trial starts."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _is_in_place(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> bool:
    """Return True if `trial` goes on in the run folder of its source."""
    return _params(trial) == _params(trials[trial.user_attrs[CONTINUES]])


def _own_steps(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> list[int]:
    """Return the evaluations of `trial` itself, without those of its source in the same run folder."""
    before = 0
    if CONTINUES in trial.user_attrs and _is_in_place(trials, trial):
        before = trials[trial.user_attrs[CONTINUES]].last_step or 0
    return [step for step in trial.intermediate_values if step > before]


def _newest_value(trials: Sequence[FrozenTrial], trial: FrozenTrial, sign: int) -> float | None:
    """Return the newest value of the member of `trial`, larger if better; None if it has none yet."""
    while trial.last_step is None and CONTINUES in trial.user_attrs:
        trial = trials[trial.user_attrs[CONTINUES]]
    if trial.last_step is None:
        return None
    value = trial.intermediate_values[trial.last_step]
    return -math.inf if math.isnan(value) else sign * value


def _ended(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> FrozenTrial | None:
    """Return the newest trial of the member of `trial` that ended, and so has a checkpoint; None if none did."""
    if trial.state.name == "PRUNED":
        return trial
    return trials[trial.user_attrs[CONTINUES]] if CONTINUES in trial.user_attrs else None

"""The trials of a study that train one configuration, each from the checkpoint of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli.search.records import CONTINUES

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Configuration:
    """A trial and those that go on from it, in the order of their numbers."""

    trials: tuple[FrozenTrial, ...]

    @property
    def number(self) -> int:
        """The number of the first trial."""
        return self.trials[0].number

    @property
    def newest(self) -> FrozenTrial:
        return self.trials[-1]

    @property
    def curve(self) -> dict[int, float]:
        """The values of all evaluations by their number from 1."""
        return {step: value for trial in self.trials for step, value in trial.intermediate_values.items()}


def configurations(study: optuna.Study) -> list[Configuration]:
    """Return the configurations of `study` in the order of their first trials."""
    trials = study.get_trials(deepcopy=False)
    chains: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        chains.setdefault(first_number(trials, trial), []).append(trial)
    return [Configuration(tuple(chain)) for chain in chains.values()]


def first_number(trials: Sequence[FrozenTrial], trial: FrozenTrial) -> int:
    """Return the number of the first trial of the configuration of `trial`."""
    while (source := trial.user_attrs.get(CONTINUES)) is not None:
        trial = trials[source]
    return trial.number

"""The trials of a study, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

CONTINUES = "continues"
"""User attribute of a trial that goes on from the checkpoint of another: the number of that trial."""
VALUES = "values"
"""User attribute: the values of the varied fields, as in YAML. Choices of Optuna may be JSON texts."""
FOLDER = "folder"
"""User attribute: the folder of the trial, relative to that of the search."""
SPANS = "spans"
"""User attribute: when and where the trial ran, a list of [start, end, slots]; slots are names such as h1:0."""
REASON = "reason"
"""User attribute: why the trial ended, if it did not complete."""
FIGURES = "figures"
"""User attribute: figures of the newest end of the trial, by name: evaluation metrics, seconds, steps, ..."""
FOLDS = "folds"
"""User attribute: the objectives of each fold, by the number of the fold."""
INFEASIBLE = "infeasible"
"""User attribute of parameters that the constraints do not allow. They are no trial."""


@dataclass(frozen=True)
class Record:
    """One trial. Times are seconds since the epoch."""

    number: int
    state: str
    """running, complete, pruned, failed, or waiting."""
    values: dict[str, Any]
    objectives: tuple[float, ...]
    """Empty unless the trial is complete."""
    curve: dict[int, float]
    """The first objective after each evaluation, by the number of the evaluation from 1."""
    folder: str
    continues: int | None
    reason: str | None
    figures: dict[str, Any]
    folds: dict[str, list[float]]
    spans: list[tuple[float, float, list[str]]]


_STATES = {"RUNNING": "running", "COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "WAITING": "waiting"}


def records(study: optuna.Study) -> list[Record]:
    """Return the trials of `study` in the order of their numbers, without infeasible ones."""
    return [record(t) for t in study.get_trials(deepcopy=False) if INFEASIBLE not in t.user_attrs]


def record(trial: optuna.trial.FrozenTrial) -> Record:
    """Return `trial` as plain values."""
    attributes = trial.user_attrs
    state = _STATES[trial.state.name]
    return Record(
        number=trial.number,
        state=state,
        values=attributes.get(VALUES, {}),
        objectives=tuple(trial.values or ()) if state == "complete" else (),
        curve=dict(sorted(trial.intermediate_values.items())),
        folder=attributes.get(FOLDER, ""),
        continues=attributes.get(CONTINUES),
        reason=attributes.get(REASON),
        figures=attributes.get(FIGURES, {}),
        folds=attributes.get(FOLDS, {}),
        spans=[(start, end, slots) for start, end, slots in attributes.get(SPANS, [])],
    )

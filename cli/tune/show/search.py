"""A search as the commands that show it need it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.search.records import Record, records
from cli.tune import study as studies
from cli.tune.objectives import Objective
from cli.tune.show.configurations import Configuration, configurations
from hvd_train.errors import UserError

if TYPE_CHECKING:
    import optuna


class Absent(Exception):
    """Something cannot be shown of this search; the text says why in one sentence."""


@dataclass(frozen=True)
class Field:
    """A field that the search varies: a number, on a logarithmic scale if `log`, or a choice."""

    name: str
    number: bool
    log: bool = False


@dataclass(frozen=True)
class Search:
    """The study in `folder` and what it searches. `total` is the number of its trials at the end."""

    folder: Path
    study: optuna.Study
    file: str
    overrides: tuple[str, ...]
    np: int
    objectives: tuple[Objective, ...]
    total: int
    folds: int

    @cached_property
    def records(self) -> list[Record]:
        return records(self.study)

    @cached_property
    def configurations(self) -> list[Configuration]:
        return configurations(self.records)

    @cached_property
    def fields(self) -> list[Field]:
        """The varied fields, in the order in which trials have them."""
        distributions = {
            name: (type(d).__name__ != "CategoricalDistribution", getattr(d, "log", False))
            for trial in self.study.get_trials(deepcopy=False)
            for name, d in trial.distributions.items()
        }
        names = dict.fromkeys(name for record in self.records for name in record.values)
        return [Field(name, *distributions.get(name) or (self._has_numbers(name), False)) for name in names]

    def _has_numbers(self, name: str) -> bool:
        values = [record.values[name] for record in self.records if name in record.values]
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def read(folder: Path) -> Search:
    """Read the search in `folder`; UserError if there is none."""
    study = studies.load(folder)
    attributes = study.user_attrs
    try:
        return Search(
            folder=folder,
            study=study,
            file=attributes["file"],
            overrides=tuple(attributes["overrides"]),
            np=attributes["np"],
            objectives=tuple(_objectives(attributes["objectives"])),
            total=attributes["trials"],
            folds=attributes.get("folds") or 0,
        )
    except KeyError as missing:
        raise UserError(
            f"{folder}: the study does not say its {missing.args[0]}, so ddl tune ended before it began; start a new search"
        ) from None


def _objectives(written: Iterable[dict[str, Any]]) -> Iterable[Objective]:
    return (Objective(objective["name"], objective["mode"]) for objective in written)

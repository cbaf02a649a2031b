"""What a search tries: the file of its runs, its space, its objectives, and the words of each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cli.arguments.configuration import NOT_OF_RANKS, RunFile, load
from cli.compare.entries import entries, file_sync
from cli.search.schema import SearchSection
from cli.search.space import Space, fields_of
from cli.tune.objectives import Objective
from hvd_train.config import document
from hvd_train.config.resolve import expand
from hvd_train.config.section import PluginSection
from hvd_train.config.sections import section_at
from hvd_train.text import strict_json
from hvd_train.text.names import match

STRATEGY = "strategy"
NP = "np"


@dataclass(frozen=True)
class Plan:
    """A search of `file` with the user's `overrides`, of so many `trials`.

    Each trial has `folds` runs, or one if `folds` is 0.
    """

    file: Path
    overrides: tuple[str, ...]
    np: int
    space: Space
    search: SearchSection
    objectives: tuple[Objective, ...]
    trials: int
    folds: int = 0

    def ranks(self, values: Mapping[str, Any]) -> int:
        """Return the number of ranks of a trial with `values`."""
        return int(values.get(NP, self.np))

    def words(self, values: Mapping[str, Any], fold: int | None = None) -> tuple[str, ...]:
        """Return the overrides of `ddl run` for `values`, and for the number of a fold."""
        words = [*self.overrides, *self._members(values), *self.space.overrides(values)]
        if STRATEGY in values:
            (entry,) = entries(str(values[STRATEGY]))
            words += entry.overrides(file_sync(self.file, words))
        return (*words, *([] if fold is None else [f"data.fold.index={fold}"]))

    def check(self, values: Mapping[str, Any]) -> RunFile:
        """Return the configuration of a trial with `values`; UserError if it is wrong."""
        return load(self.file, self.words(values))

    def identity(self) -> dict[str, Any]:
        """Return what must be equal when a search is resumed, as JSON by dotted name."""
        config = load(self.file, self.overrides).model_dump(exclude=NOT_OF_RANKS)
        space = self.space.describe()
        parts: dict[str, Any] = {
            "file": config,
            "space": {d["field"]: d for d in space["dimensions"]},
            "constraints": space["constraints"],
            "objectives": [objective.title for objective in self.objectives],
            "folds": self.folds,
            "np": self.np,
            "sampler": self.search.sampler.model_dump(),
            "pruner": self.search.pruner.model_dump(),
        }
        normal: dict[str, Any] = strict_json.loads_exact(strict_json.dumps_exact(_leaves(parts)))
        return normal

    @cached_property
    def _written(self) -> dict[str, Any]:
        """The values of the file with the user's overrides, without defaults."""
        source = document.read(self.file)
        source.values = expand(RunFile, source.values)
        for assignment in self.overrides:
            source.override(assignment)
        written: dict[str, Any] = expand(RunFile, source.values)
        return written

    def _members(self, values: Mapping[str, Any]) -> Iterator[str]:
        """Yield overrides for sections whose member differs from that of the file.

        The options of the file's member are left out: the other member may not have them.
        """
        for field, value in values.items():
            *path, last = field.split(".")
            section = section_at(RunFile, tuple(path))
            if not (issubclass(section, PluginSection) and last == section.selector):
                continue
            given, member = _at(self._written, path), match(str(value), section.members())
            if member is None or member == given.get(last, section.default):
                continue
            known = {*section.model_fields, *section.fields_with(member)} - {last}
            kept = {key: given[key] for key in given if key in known}
            yield f"{'.'.join(path)}={strict_json.dumps_exact({last: member, **kept})}"


def _at(values: Any, path: list[str]) -> dict[str, Any]:
    for key in path:
        values = values.get(key) or {}
    return dict(values)


def _leaves(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are no sections by names with dots."""
    return {name: value for name, value in fields_of(values).items() if not (isinstance(value, Mapping) and value)}


def difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Describe how the search `now` differs from the search `was`, in up to three fields; None if it does not."""
    names = [name for name in dict.fromkeys([*was, *now]) if was.get(name) != now.get(name)]
    shown = [f"{name.removeprefix('file.')} was {_text(was, name)}, is {_text(now, name)}" for name in names[:3]]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return "; ".join(shown) + more if names else None


def _text(values: Mapping[str, Any], name: str) -> str:
    return strict_json.dumps(values[name])[:80] if name in values else "not there"

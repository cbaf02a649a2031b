"""A YAML file with which `ddl run` repeats a trial."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cli.arguments.configuration import NOT_OF_RANKS, RunFile
from cli.runs import records
from cli.search.schema import SearchSection
from cli.search.space import Space
from cli.tune.plan import Plan
from cli.tune.show.configurations import Configuration
from cli.tune.show.search import Search
from hvd_train.config import document
from hvd_train.config.resolve import expand, resolve_as
from hvd_train.errors import UserError
from hvd_train.text import strict_json
from hvd_train.text.names import printable

MAP = f"{document.CORE}map"


class _Block(dict[str, Any]):
    """A mapping with one key a line."""


class _Dumper(yaml.SafeDumper):
    """Quotes every text that the reader of ddl's files would take for a number, such as '1e-3'."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = document.RESOLVERS
_Dumper.add_representer(_Block, lambda dumper, block: dumper.represent_mapping(MAP, block, flow_style=False))


def dumped(values: Mapping[str, Any]) -> str:
    """Return `values` as YAML with one key a line; lists and sections of plain values are one line."""
    text: str = yaml.dump(
        _Block(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )
    return text


def best_yaml(search: Search, configuration: Configuration) -> str | None:
    """Return the text of a file from which `ddl run` makes the configuration of a trial; None if nothing gives it.

    It is the user's file with the values of the trial. If that is gone or has changed since, it is
    the trial's own config.json. Of a search with folds the file trains on all samples.
    """
    wanted = _of_trial(search, configuration)
    for values in _candidates(search, configuration, wanted):
        if search.folds:
            values["data"].pop("fold", None)
        found = _resolved(values)
        if search.folds and found is not None:
            found["data"].pop("fold", None)
        if found is not None and wanted in (None, found):
            return _heading(search, configuration) + dumped(values)
    return None


def _heading(search: Search, configuration: Configuration) -> str:
    np = configuration.values.get("np", search.np)
    pairs = zip(search.objectives, configuration.objectives, strict=False)
    achieved = ", ".join(f"{objective.title} {value:.6g}" for objective, value in pairs)
    return (
        f"# Trial {configuration.number} of {printable(Path(search.file).name)}{': ' * bool(achieved)}{printable(achieved)}\n"
        f"#   ddl run --np {np} best.yaml\n"
    )


def _of_trial(search: Search, configuration: Configuration) -> dict[str, Any] | None:
    """Return the configuration in the run folder of the trial; None if it wrote none."""
    folder = search.folder / configuration.newest.folder
    folders = [folder, *sorted(folder.glob("fold-*"))] if configuration.newest.folder else []
    found = next(filter(None, map(records.config, folders)), None)
    if found is not None and search.folds:
        found["data"].pop("fold", None)
    return found


def _candidates(
    search: Search, configuration: Configuration, wanted: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """Yield documents that may give the configuration of the trial, those that a person prefers first."""
    try:
        file = _file(search)
        source = document.read(file)
        source.values = expand(RunFile, source.values)
        plan = Plan(file, search.overrides, search.np, Space(()), SearchSection(), search.objectives, search.total)
        for word in plan.words(configuration.values):
            source.override(word)
        yield {key: value for key, value in source.values.items() if key != "search"}
    except UserError:
        pass  # the file is gone or has changed
    if wanted is not None:
        yield _config(copy.deepcopy(wanted)).model_dump(exclude_defaults=True, exclude=NOT_OF_RANKS)
        yield copy.deepcopy(wanted)


def _file(search: Search) -> Path:
    """Return the user's file, which may have moved together with the folder of the search."""
    file = Path(search.file)
    return file if file.is_file() else search.folder / file.name


def _resolved(values: dict[str, Any]) -> dict[str, Any] | None:
    """Return the configuration that a document gives, as config.json has it; None if it is wrong."""
    try:
        config = _config(copy.deepcopy(values))
    except UserError:
        return None
    found: dict[str, Any] = json.loads(strict_json.dumps(config.model_dump(exclude=NOT_OF_RANKS)))
    return found


def _config(values: dict[str, Any]) -> RunFile:
    return resolve_as(RunFile, document.Document(values, "best.yaml"))

"""Read a YAML file and its overrides, and check them as far as the command can."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from cli.search.schema import SearchSection
from cli.slurm.schema import SlurmSection
from hvd_train.config import document, targets
from hvd_train.config.document import Document
from hvd_train.config.resolve import resolve_as, target_sections
from hvd_train.config.schema import Config
from hvd_train.errors import UserError


class RunFile(Config):
    """One YAML file: the configuration of the ranks, and what `ddl submit` and `ddl tune` add to it."""

    slurm: SlurmSection = Field(default_factory=SlurmSection)
    search: SearchSection = Field(default_factory=SearchSection)


NOT_OF_RANKS = set(RunFile.model_fields) - set(Config.model_fields)
"""The sections that ranks never receive."""


def load(file: Path, overrides: Sequence[str]) -> RunFile:
    """Return the checked configuration; UserError has one line for each mistake."""
    return read(file, overrides)[0]


def read(file: Path, overrides: Sequence[str], search: Path | None = None) -> tuple[RunFile, Document]:
    """Return what `load` returns, and the document, which has the line of each field.

    The file `search` has fields of the section `search:`, which replace those of `file`.
    """
    source = document.read(file)
    if search is not None:
        _merge_search(source, document.read(search))
    config = resolve_as(RunFile, source, overrides)
    for path, target in target_sections(config):
        try:
            targets.check(target)
        except UserError as error:
            raise UserError(f"{source.place(path)}: {'.'.join(map(str, path))}: {error}") from None
    return config, source


def _merge_search(source: Document, more: Document) -> None:
    own = source.values.get("search")
    source.values["search"] = {**(own if isinstance(own, dict) else {}), **more.values}
    source.places |= {("search", *path): place for path, place in more.places.items()}

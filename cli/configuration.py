"""A YAML file and overrides -> a configuration that is worth launching."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hvd_train import document, targets
from hvd_train.config import Config, resolve
from hvd_train.document import Document
from hvd_train.errors import UserError


def load(file: Path, overrides: Sequence[str]) -> Config:
    """The checked configuration; UserError has a line for each mistake."""
    return read(file, overrides)[0]


def read(file: Path, overrides: Sequence[str]) -> tuple[Config, Document]:
    """Like `load`; the document knows where each field was written."""
    source = document.read(file)
    config = resolve(source, overrides)
    for word, section in (("model", config.model), ("data", config.data)):
        if section.name == "target":
            try:
                targets.check(section.options["target"])
            except UserError as error:
                raise UserError(f"{source.place((word, 'target'))}: {word}.target: {error}") from None
    return config, source

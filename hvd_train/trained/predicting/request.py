"""What `ddl predict` asks its process for. It imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvd_train.config import plugins
from hvd_train.errors import UserError, nearest
from hvd_train.text.argument import Argument

FORMATS = "hvd_train.trained.writers"
"""The package of the formats of predictions."""


@dataclass(frozen=True)
class Request(Argument):
    """The options of the command."""

    run: str
    inputs: list[str]
    output: str | None
    """The file to write; None: stdout."""
    format: str
    overrides: list[str]
    keep: list[str]
    top: int
    tokens: int | None
    search: dict[str, Any] = field(default_factory=dict)
    """The fields of `Search`."""


def format_of(output: Path | None, *, as_json: bool) -> str:
    """Return the name of the format of the predictions; UserError for a file with another ending."""
    if output is None:
        return "jsonl" if as_json else "csv"
    name, known = output.suffix.lower().lstrip("."), plugins.names(FORMATS)
    if name not in known:
        endings = [f".{one}" for one in known]
        raise UserError(f"--output: {output} has an unknown ending{nearest(output.suffix, endings)}")
    return name

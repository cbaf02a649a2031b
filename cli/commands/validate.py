"""`ddl validate`: check a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.arguments import options
from hvd_train.text.names import printable


def command(
    file: Annotated[Path, typer.Argument(help="YAML file of a run.", show_default=False)],
    overrides: options.Overrides = None,
) -> None:
    """Check a YAML file; print each mistake with its line, its field and the nearest choice."""
    from cli.arguments.configuration import load

    load(file, overrides or [])
    print(f"{printable(file)}: valid")

"""`ddl validate`: is this YAML file a run?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from hvd_train.names import printable


def command(
    file: Annotated[Path, typer.Argument(help="YAML file of a run.", show_default=False)],
    overrides: options.Overrides = None,
) -> None:
    """Check a YAML file: every mistake with its line, its field and the nearest right choice."""
    from cli.configuration import load

    load(file, overrides or [])
    print(f"{printable(file)}: valid")

"""`ddl results`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from hvd_train import strict_json
from hvd_train.errors import UserError


def command(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of them.")],
    as_json: options.Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """One table of runs: the fields in which they differ, how they ended, and their final metrics."""

    from cli.slurm import tables

    if as_json and as_csv:
        raise UserError("--json and --csv are two forms of one answer; give one of them")
    rows = tables.results(folders)
    if as_json:
        print(strict_json.dumps(rows, indent=1))
    else:
        print(tables.csv_text(rows) if as_csv else tables.text(rows), end="")

"""`ddl results`: compare runs in a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.arguments import options
from hvd_train.errors import UserError
from hvd_train.text import strict_json


def command(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, or folders of run folders.")],
    as_json: options.Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.", rich_help_panel=options.OUTPUT)] = False,
) -> None:
    """Print a table of runs: fields in which they differ, final metrics, and how they ended."""
    from cli.runs import tables
    from cli.slurm import status

    if as_json and as_csv:
        raise UserError("--json and --csv both select the output; give one of them")
    runs = tables.runs(folders)
    rows = tables.results(runs, status.ends(runs))
    if as_json:
        print(strict_json.dumps(rows, indent=1))
    else:
        print(tables.csv_text(rows) if as_csv else tables.text(rows), end="")

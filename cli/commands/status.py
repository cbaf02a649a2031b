"""`ddl status`: show the state and progress of submitted jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.arguments import options
from hvd_train.text import strict_json


def command(
    run: Annotated[Path, typer.Argument(help="Run folder of ddl submit, or a folder of run folders.")] = Path("runs"),
    as_json: options.Json = False,
) -> None:
    """Show the state and progress of submitted jobs."""
    from cli.runs import records, tables
    from cli.slurm import jobs, status

    rows = [status.row(submitted, state) for submitted, state in jobs.states(records.required(run))]
    print(strict_json.dumps(rows, indent=1) if as_json else tables.text(rows), end="\n" if as_json else "")

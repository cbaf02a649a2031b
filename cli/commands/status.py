"""`ddl status`: submitted jobs, and how far they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from hvd_train import strict_json


def command(
    run: Annotated[Path, typer.Argument(help="Run folder, folder of a sweep, or folder of runs.")] = Path("runs"),
    as_json: options.Json = False,
) -> None:
    """Show the jobs that were submitted: their state, and how far they are."""
    from cli.slurm import jobs, runs, tables

    rows = [tables.status(found, state) for found, state in jobs.look(runs.required(run))]
    print(strict_json.dumps(rows, indent=1) if as_json else tables.text(rows), end="\n" if as_json else "")

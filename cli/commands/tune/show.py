"""`ddl tune show`: show what a search has found so far."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.arguments import options
from cli.output import packages
from hvd_train.text import strict_json
from hvd_train.text.names import printable


def command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a search.", show_default=False)],
    best: Annotated[
        int,
        typer.Option(
            "--best", metavar="N", min=1, help="Trials in the tables, the best first.", rich_help_panel=options.OUTPUT
        ),
    ] = 20,
    output: options.ShownFolder = None,
    as_json: options.Json = False,
) -> None:
    """Print the best trials, and write best.yaml, report.html, tables and pictures of all trials.

    The search may still be running.
    """
    from cli.tune.show import table
    from cli.tune.show.search import read

    search = read(folder)
    packages.check("tune show", "tune", "matplotlib", "jinja2", "sklearn")
    from cli.tune.show.save import save

    target = output or folder
    notes = save(search, target, best)
    print(strict_json.dumps(table.as_json(search), indent=1) if as_json else table.text(search, best).rstrip("\n"))
    for line in (*notes, f"{target / 'report.html'} written, and best.yaml, trials.csv, trials.json and pictures"):
        print(printable(line), file=sys.stderr)

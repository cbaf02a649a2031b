"""`ddl data show`: show the data set of a run, and how a partition distributes it over the workers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.arguments import options
from cli.output import pictures
from hvd_train.errors import UserError
from hvd_train.text.names import printable

if TYPE_CHECKING:
    from hvd_train.config.schema import Config

MOST_OPTIONS = 50
"""Characters of the options of a partition in the title."""
WORKERS = "0,1,2,4"


def _numbers(word: object) -> str:
    """Parse numbers of workers; UserError for another word."""
    if not re.fullmatch(r"\d{1,3}(,\d{1,3})*", str(word)):
        raise UserError(f"--workers: expected numbers such as {WORKERS}, got '{word}'")
    return str(word)


Workers = Annotated[
    str,
    typer.Option(
        "--workers",
        metavar="N,N",
        help="Numbers of loading workers whose rates are measured.",
        parser=_numbers,
        rich_help_panel=options.START,
    ),
]


def command(
    file: Annotated[Path, typer.Argument(help="YAML file of a run.", show_default=False)],
    overrides: options.Overrides = None,
    np: options.FixedNp = 2,
    workers: Workers = WORKERS,
    output: options.Picture = None,
    as_json: options.Json = False,
) -> None:
    """Show samples, their fields, the classes of each worker, and loading rates: tables and a picture.

    Of environments it shows observations, actions and the return of a random policy.
    """
    picture = output or Path(f"data-{file.stem}.png")
    if picture.suffix != ".png" or picture.is_dir() or not picture.parent.is_dir():
        raise UserError(
            f"--output: '{picture}' cannot be written; expected a file name such as data.png in an existing folder"
        )
    pictures.check("data show")
    from cli.arguments.configuration import load

    config = load(file, overrides or [])
    survey = _survey(config, np, workers)

    from cli.data import report
    from cli.data.picture import picture as draw

    samples = "environment" not in survey
    title = printable(f"{file.name}: {_partition(config)}, np={np}") if samples else printable(file.name)
    print(report.json(survey) if as_json else report.text(title, survey, None if sys.stdout.isatty() else 140), end="")
    if not samples:
        return
    draw(title, survey).savefig(picture)
    print(f"{printable(picture)} written", file=sys.stderr if as_json else sys.stdout)


def _survey(config: Config, ranks: int, workers: str) -> dict[str, Any]:
    """Return the survey of the data set (`hvd_train/data/survey`).

    A separate process loads the data; if it fails, this command exits with its code.
    """
    from hvd_train.config import words
    from hvd_train.config.launch import Launch, to_document
    from hvd_train.rank import internal

    with tempfile.TemporaryDirectory(prefix="ddl-data-") as scratch:
        result = Path(scratch) / "survey.json"
        document, variables = words.split(to_document(config, Launch(world_size=ranks, engine="single", output="")))
        command = internal.argv("hvd_train.data.survey", document, str(result), workers)
        done = subprocess.run(command, env={**os.environ, **variables}, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def _partition(config: Config) -> str:
    section = config.data.partition
    options = ", ".join(f"{word}: {_value(value)}" for word, value in section.options.items())
    short = options if len(options) <= MOST_OPTIONS else f"{options[:MOST_OPTIONS]}..."
    return f"{section.label} ({short})" if options else section.label


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)

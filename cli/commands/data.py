"""`ddl data`: what a run's partition gives to each worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, pictures
from hvd_train.errors import UserError
from hvd_train.names import find, printable

if TYPE_CHECKING:
    from hvd_train.config import Config

ACTIONS = ["show"]
MOST_OPTIONS = 50
"""Characters of a partition's options in the title."""


def command(
    what: Annotated[str, typer.Argument(help="show.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="YAML file of a run.", show_default=False)],
    overrides: options.Overrides = None,
    np: options.FixedNp = 2,
    output: options.Picture = None,
) -> None:
    """Show how samples and classes are dealt to workers: a table, and a picture of stacked bars."""
    find(what, ACTIONS, "data: no")
    picture = output or Path(f"data-{file.stem}.png")
    if picture.suffix != ".png" or picture.is_dir() or not picture.parent.is_dir():
        raise UserError(
            f"--output: '{picture}' cannot be written; expected a name such as data.png in a folder that exists"
        )
    pictures.check("data show")
    from cli.configuration import load

    config = load(file, overrides or [])
    histograms = _dealt(config, np)

    from cli.data import plots, tables
    from hvd_train.display import console

    title = printable(f"{file.name}: {_partition(config)}, np={np}")
    print(title)
    console(width=None if sys.stdout.isatty() else 140).print(tables.shares(histograms))
    plots.shares(title, histograms).savefig(picture)
    print(f"{printable(picture)} written")


def _dealt(config: Config, workers: int) -> list[dict[int, int]]:
    """Samples of each class that each worker has, from a process that may load the data; the command ends where that fails."""
    from hvd_train import internal, words
    from hvd_train.config import Launch, to_document

    with tempfile.TemporaryDirectory(prefix="ddl-data-") as scratch:
        found = Path(scratch) / "dealt.json"
        document, variables = words.split(to_document(config, Launch(world_size=workers, engine="single", output="")))
        command = internal.argv("hvd_train.dealt", document, str(found))
        done = subprocess.run(command, env={**os.environ, **variables}, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        text = found.read_text(encoding="utf-8")
    return [{int(kind): n for kind, n in one.items()} for one in json.loads(text)["histograms"]]


def _partition(config: Config) -> str:
    section = config.data.partition
    options = ", ".join(f"{word}: {_value(value)}" for word, value in section.options.items())
    short = options if len(options) <= MOST_OPTIONS else f"{options[:MOST_OPTIONS]}..."
    return f"{section.name} ({short})" if options else section.name


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)

"""One page of HTML with the results of a search, which needs no other file and runs no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from cli.tune.show import configurations, table
from cli.tune.show.pictures.draw import Picture
from cli.tune.show.search import Search


def page(search: Search, most: int, best: str | None, pictures: Sequence[Picture]) -> str:
    """Return the page: the header, the file of the `best` trial, the `most` best trials, and the pictures."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    names, *rows = table.shown(search, most)
    return template.render(
        title=Path(search.file).name,
        header=table.header(search),
        best=best,
        names=names,
        rows=rows,
        best_numbers=[str(c.number) for c in configurations.best(search.configurations, search.objectives)],
        footnotes=table.footnotes(search, [names, *rows]),
        pictures=[(p.title, _uri(p.png), p.note) for p in pictures],
    )


def _uri(png: bytes | None) -> str | None:
    return None if png is None else f"data:image/png;base64,{base64.b64encode(png).decode()}"

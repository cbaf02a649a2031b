"""A survey (`hvd_train/data/survey`) as text and as JSON."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from cli.data import tables
from hvd_train.text import strict_json
from hvd_train.text.display import console
from hvd_train.text.names import printable

DRAWN = ("drawings", "titles")
"""Parts of a survey that only the picture shows."""
WIDTH = 100


def json(survey: Mapping[str, Any]) -> str:
    """Return the survey without the values of drawn samples."""
    return strict_json.dumps({key: value for key, value in survey.items() if key not in DRAWN}, indent=1) + "\n"


def text(title: str, survey: Mapping[str, Any], width: int | None) -> str:
    """Return tables of workers and classes, fields and rates, and the beginnings of texts."""
    file = io.StringIO()
    shown = console(file=file, width=width)
    for part in _parts(title, survey):
        shown.print(part)
    return file.getvalue()


def _parts(title: str, survey: Mapping[str, Any]) -> Iterator[str | Table]:
    yield title
    if "environment" in survey:
        yield tables.environment(survey["environment"])
        return
    if survey["shares"] is not None:
        yield tables.shares(tables.histograms(survey), survey["classes"])
    yield _sizes(survey)
    yield tables.fields(survey["fields"])
    if {column["name"] for column in survey["columns"]} - {field["name"] for field in survey["fields"]}:
        yield tables.fields(survey["columns"])
    for name, excerpts in survey["excerpts"].items():
        yield f"{printable(name)}:"
        yield from (textwrap.indent(textwrap.fill(printable(excerpt), WIDTH), "  ") for excerpt in excerpts)
    if survey["rates"]:
        yield tables.rates(survey["rates"])


def _sizes(survey: Mapping[str, Any]) -> str:
    """Return the numbers of samples, the task, and how many samples the statistics are of."""
    counts = ", ".join(
        f"{printable(name)}: {'a stream' if n is None else f'{n:,}'}" for name, n in survey["samples"].items()
    )
    outputs = f", {survey['outputs']:,} outputs" if survey["outputs"] else ""
    which = "the first {:,}" if survey["samples"]["train"] is None else "{:,} random"
    return (
        f"samples: {counts}; {survey['task']}{outputs}; {survey['bytes_per_sample']:,.0f} bytes each; "
        f"statistics of {which.format(survey['read'])} training samples"
    )

"""The result of an evaluation (`hvd_train/trained/tasks/evaluate.py`) as text and as JSON."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from hvd_train.text import strict_json
from hvd_train.text.display import console
from hvd_train.text.names import printable

Result = Mapping[str, Any]

DRAWN = ("drawings", "curves", "points")
"""Parts of a result that `evaluate.json` and the pictures have."""
MOST_ROWS = 30
EXCERPT = 40
"""Characters of a text."""
_SORTED = {"f1": 1, "r2": 1, "loss": -1}
"""Columns by which rows are chosen if there are too many, and 1 if small values are bad."""
_TITLES = {"classes": "Classes", "labels": "Labels", "numbers": "Targets", "tokens": "Tokens with most of the loss"}


def json(result: Result) -> str:
    """Return the result without the values that only pictures show."""
    return strict_json.dumps({key: value for key, value in result.items() if key not in DRAWN}, indent=1) + "\n"


def text(result: Result, width: int | None) -> str:
    """Return the tables of metrics, of classes or other rows, and of the worst samples."""
    file = io.StringIO()
    shown = console(file=file, width=width)
    for part in _parts(result):
        shown.print(part)
    return file.getvalue()


def _parts(result: Result) -> Iterator[str | Table]:
    if result["kind"] == "episodes":
        yield from _episodes(result)
        return
    yield _title(result)
    yield _metrics(result["metrics"])
    if result.get("translations"):
        yield from _translations(result["translations"])
    if result["rows"]:
        yield _rows(_TITLES[result["kind"]], result["rows"])
    if result.get("confused"):
        yield _table("Most confused", result["confused"], ["target", "prediction", "samples"])
    if result["worst"]:
        columns = [key for key in result["worst"][0] if key != "loss" or len(result["worst"][0]) > 1]
        yield _table("Samples with the largest loss", result["worst"], columns)


def _episodes(result: Result) -> Iterator[str | Table]:
    """Yield what the episodes of an agent were worth."""
    acts = "actions as in training" if result["stochastic"] else "best actions"
    yield (
        f"{printable(result['checkpoint'])}\n{result['episodes']:,} episodes by {acts} in {result['seconds']:.2f} s, "
        f"{result['env_steps_per_second']:,.0f} env steps/s; {_ranks(result)}"
    )
    found = dict(result["metrics"])
    low, high = found.pop("return_iqm_low"), found.pop("return_iqm_high")
    table = Table("metric", "value")
    for name, value in found.items():
        bounds = f" [{number(low)}, {number(high)}]" if name == "return_iqm" else ""
        table.add_row(printable(name), number(value) + bounds)
    yield table


def _translations(found: Result) -> Iterator[str | Table]:
    """Yield the scores of the model beside those of simple answers, and examples."""
    yield _table("Translations", found["rows"], [*found["rows"][0]])
    if not any("nearest" in row["answer"] for row in found["rows"]):
        yield (
            "The training pairs of the run are not at hand, so there is no comparison with the nearest one; leave out "
            "--data path, or give --data test_path=PATH"
        )
    yield _table("Examples", found["examples"], ["source", "target", "model"])


def _title(result: Result) -> str:
    return (
        f"{printable(result['checkpoint'])}\n{printable(result['split'])}: {result['samples']:,} samples in "
        f"{result['seconds']:.2f} s, {result['samples_per_second']:,.0f} samples/s; {_ranks(result)}"
    )


def _ranks(result: Result) -> str:
    ranks, threads = int(result["ranks"]), int(result["threads"])
    return f"np={ranks}, {threads} thread{'s' * (threads > 1)}" + " each" * (ranks > 1)


def _metrics(metrics: Result) -> Table:
    table = Table("metric", "value")
    for name, value in metrics.items():
        shown = f"{len(value)} values, in evaluate.json" if isinstance(value, list) else number(value)
        table.add_row(printable(name), shown)
    return table


def _rows(title: str, rows: Sequence[Result]) -> Table:
    columns = [key for key in rows[0] if not key.endswith("_error") or key == "largest_error"]
    if len(rows) <= MOST_ROWS:
        return _table(title, rows, columns)
    by, sign = next((key, sign) for key, sign in _SORTED.items() if key in rows[0])
    chosen = sorted(rows, key=lambda row: sign * (row[by] if row[by] is not None else 0))[:MOST_ROWS]
    return _table(f"{title}: {MOST_ROWS} of {len(rows)}, by {by}", chosen, columns)


def _table(title: str, rows: Sequence[Result], columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        is_text = any(isinstance(row[name], str) for row in rows)
        table.add_column(name.replace("_", " "), justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row, name) for name in columns))
    return table


def _cell(row: Result, name: str) -> str:
    """Return a value, with the bound of its error where that changes the digits, or the end of a path."""
    if name == "file":
        return printable(os.path.join(*Path(row[name]).parts[-2:]))
    error = row.get(f"{name}_error")
    return f"{number(row[name])} ±{error:.1g}" if error and error >= 5e-5 else number(row[name])


def number(value: Any) -> str:
    """Return a value of a table as text."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(number, value)) or "none"
    if isinstance(value, str):
        return printable(value if len(value) <= EXCERPT else f"{value[: EXCERPT - 3]}...")
    if isinstance(value, int):
        return f"{value:,}"
    small = value and abs(value) < 0.001
    return f"{value:.3g}" if small or abs(value) >= 1e6 else f"{value:.4f}"

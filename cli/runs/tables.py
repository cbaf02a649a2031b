"""Tables of runs: one row for each run folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.output.columns import columns
from cli.runs import records
from hvd_train.config import document
from hvd_train.errors import UserError
from hvd_train.rank.submitted import RECORD

Row = dict[str, Any]


def runs(folders: Iterable[Path]) -> list[Path]:
    """Return the run folders among `folders` and below them, each once.

    Files among folders, such as the job.sh that `runs/sweep/*` matches, are left out. UserError if
    a folder is missing or has no run.
    """
    given = list(folders)
    directories = [path for path in given if path.is_dir()] or given
    return list(dict.fromkeys(run for folder in directories for run in _below(folder)))


def results(folders: Sequence[Path], ends: Mapping[Path, str]) -> list[Row]:
    """Return a row for each run: fields that differ between runs, metrics and how it ended.

    `ends` overrides what summary.json has on the end, because that may be of an earlier attempt.
    """
    fields = [_fields(folder) for folder in folders]
    differing = _differing(fields, [bool(records.config(folder)) for folder in folders])
    return [
        _result(folder, {name: values.get(name) for name in differing}, ends.get(folder))
        for folder, values in zip(folders, fields, strict=True)
    ]


def text(rows: Sequence[Row]) -> str:
    """Return the rows as aligned columns."""
    names = _columns(rows)
    return columns([names, *([_cell(row.get(name)) for name in names] for row in rows)]) + "\n"


def csv_text(rows: Sequence[Row]) -> str:
    """Return the rows as CSV, with a header."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _below(folder: Path) -> list[Path]:
    """Return `folder` if it is a run, and the runs up to two levels below it.

    UserError if there are none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a run folder, or a folder of run folders")
    marks = (RECORD, "config.json", "command.txt")
    folders = {path.parent for depth in ("", "*/", "*/*/") for mark in marks for path in folder.glob(depth + mark)}
    if not folders:
        raise UserError(
            f"{folder}: no run here; expected a folder with config.json or command.txt, which ddl run and ddl submit write"
        )
    return sorted(folders, key=records.natural)


def _fields(folder: Path) -> dict[str, Any]:
    """Return the configuration of a run by dotted names.

    Before the run has begun, these are its overrides in the sweep.
    """
    submitted = records.read(folder)
    whole = records.config(folder)
    if not whole and submitted:
        overrides = document.Document({}, str(folder))
        for assignment in submitted.overrides:
            overrides.override(assignment)
        whole = overrides.values
    return dict(_flat(whole, ""))


def _flat(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _differing(fields: Sequence[Mapping[str, Any]], begun: Sequence[bool]) -> list[str]:
    """Return the names whose values differ between runs.

    A run that has not begun counts only for its overrides.
    """
    names = dict.fromkeys(name for values in fields for name in values)
    runs = list(zip(fields, begun, strict=True))
    return [name for name in names if len({repr(v.get(name)) for v, complete in runs if complete or name in v}) > 1]


def _result(folder: Path, fields: Row, ended: str | None) -> Row:
    summary = records.summary(folder)
    seconds = summary.get("seconds")
    return {
        "run": str(folder),
        **fields,
        **{f"test {name}": value for name, value in summary.get("eval", {}).items() if not isinstance(value, list)},
        "steps": summary.get("steps"),
        **({"env_steps": summary["env_steps"]} if "env_steps" in summary else {}),
        "seconds": round(sum(seconds.values()), 3) if seconds else summary.get("wall_seconds"),
        "ended": ended or summary.get("ended", "not yet"),
    }


def _columns(rows: Sequence[Row]) -> list[str]:
    """Return the names of all rows, in the order of the longest row."""
    widest = max(rows, key=len, default={})
    return list(dict.fromkeys([*widest, *(name for row in rows for name in row)]))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

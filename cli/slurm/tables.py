"""Runs as rows of a table: how their jobs stand, and what came of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.columns import columns
from cli.slurm import jobs, runs
from cli.slurm.control import State
from cli.slurm.runs import Submitted
from hvd_train import document
from hvd_train.errors import UserError
from hvd_train.submitted import RECORD

Row = dict[str, Any]


def status(run: Submitted, state: State) -> Row:
    """A run, its job, and how far it is."""
    said = runs.attempts(run.folder)
    why, code = jobs.outcome(run, state)
    return {
        "run": str(run.folder),
        "job": run.id,
        "state": state.state,
        "why": why,
        "nodes": state.nodes,
        "time": state.elapsed,
        "limit": state.limit,
        "step": runs.last_step(run.folder),
        "requeues": said[-1]["requeues"] if said else 0,
        "exit code": code,
    }


def results(folders: Iterable[Path]) -> list[Row]:
    """A row for each run of `folders`: the fields that are not the same in all, how it ended, and its metrics."""
    found = list(dict.fromkeys(run for folder in _folders(folders) for run in _runs(folder)))
    fields = [_fields(folder) for folder in found]
    differing = _differing(fields, [bool(runs.config(folder)) for folder in found])
    ends = _ends(found)
    return [
        _result(run, {name: of.get(name) for name in differing}, ends.get(run))
        for run, of in zip(found, fields, strict=True)
    ]


def text(rows: Sequence[Row]) -> str:
    """For people."""
    names = _columns(rows)
    return columns([names, *([_cell(row.get(name)) for name in names] for row in rows)]) + "\n"


def csv_text(rows: Sequence[Row]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _folders(given: Iterable[Path]) -> list[Path]:
    """`given` without the files among its folders, such as the job.sh that `runs/sweep/*` names too."""
    found = list(given)
    return [path for path in found if path.is_dir()] or found


def _ends(folders: Sequence[Path]) -> dict[Path, str]:
    """How the jobs of submitted runs ended, where summary.json does not say it."""
    submitted = [run for run in map(runs.read, folders) if run is not None]
    unknown: str | None = "unknown: SLURM has forgotten the job"
    try:
        known = jobs.look(submitted)
    except UserError:  # no SLURM here: a run may be on its way elsewhere
        known, unknown = [(run, jobs.state_of(run, ())) for run in submitted], None
    ends = {run.folder: _end(run, state, unknown) for run, state in known}
    return {folder: end for folder, end in ends.items() if end}


def _end(run: Submitted, state: State, unknown: str | None) -> str | None:
    """None where summary.json says how the run ended."""
    if state.going:
        return "not yet"
    cause, code = jobs.outcome(run, state)
    if code is None:
        return unknown
    end = runs.newest_end(run.folder)
    told = end is not None and end["cause"] == cause and "ended" in runs.summary(run.folder)
    return None if told else f"{cause or state.state} (exit code {code})"


def _runs(folder: Path) -> list[Path]:
    """`folder` itself if it is a run, else those in it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a run folder, or a folder of them")
    marks = (RECORD, "config.json", "command.txt")
    found = {path.parent for depth in ("", "*/", "*/*/") for mark in marks for path in folder.glob(depth + mark)}
    if not found:
        raise UserError(
            f"{folder}: no run here; expected a folder with config.json or command.txt, as ddl run and ddl submit leave it"
        )
    return sorted(found, key=runs.natural)


def _fields(folder: Path) -> dict[str, Any]:
    """What was asked of a run, by dotted names; of one that has not begun, what distinguishes it from its sweep."""
    submitted = runs.read(folder)
    whole = runs.config(folder)
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
    """Names whose values are not the same in all runs; of a run that has not begun, only what it overrides is known."""
    names = dict.fromkeys(name for of in fields for name in of)
    both = list(zip(fields, begun, strict=True))
    return [name for name in names if len({repr(of.get(name)) for of, whole in both if whole or name in of}) > 1]


def _result(folder: Path, fields: Row, ended: str | None) -> Row:
    """`ended` goes before what summary.json says, which may be of an earlier attempt."""
    summary = runs.summary(folder)
    seconds = summary.get("seconds")
    return {
        "run": str(folder),
        **fields,
        **{f"test {name}": value for name, value in summary.get("eval", {}).items()},
        "steps": summary.get("steps"),
        "seconds": round(sum(seconds.values()), 3) if seconds else summary.get("wall_seconds"),
        "ended": ended or summary.get("ended", "not yet"),
    }


def _columns(rows: Sequence[Row]) -> list[str]:
    """Names of all rows, metrics of runs that have some before what stands after them."""
    widest = max(rows, key=len, default={})
    return list(dict.fromkeys([*widest, *(name for row in rows for name in row)]))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

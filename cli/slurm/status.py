"""Rows and texts on the jobs of submitted runs, from SLURM and from the run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli.runs import records
from cli.runs.records import Submitted
from cli.slurm import jobs
from cli.slurm.control import JobStatus
from hvd_train.errors import UserError

_UNKNOWN = "unknown: SLURM has forgotten the job"


def row(run: Submitted, state: JobStatus) -> dict[str, Any]:
    """Return the row of `run` in the table of `ddl status`."""
    attempts = records.attempts(run.folder)
    why, code = jobs.outcome(run, state)
    return {
        "run": str(run.folder),
        "job": run.id,
        "state": state.state,
        "why": why,
        "nodes": state.nodes,
        "time": state.elapsed,
        "limit": state.limit,
        "step": records.last_step(run.folder),
        "requeues": attempts[-1]["requeues"] if attempts else 0,
        "exit code": code,
    }


def ends(folders: Sequence[Path]) -> dict[Path, str]:
    """Return how each submitted run ended, for the runs whose summary.json does not have it.

    On a machine without SLURM, the run folders alone decide.
    """
    submitted = [run for run in map(records.read, folders) if run is not None]
    unknown: str | None = _UNKNOWN
    try:
        states = jobs.states(submitted)
    except UserError:
        states, unknown = [(run, jobs.state_of(run, ())) for run in submitted], None
    texts = {run.folder: _end(run, state, unknown) for run, state in states}
    return {folder: end for folder, end in texts.items() if end}


def _end(run: Submitted, state: JobStatus, unknown: str | None) -> str | None:
    """Return how the job of `run` ended; None if summary.json has it, `unknown` if nobody knows."""
    if state.active:
        return "not yet"
    cause, code = jobs.outcome(run, state)
    if code is None:
        return f"{unknown} ({cause})" if unknown and cause else unknown
    end = records.newest_end(run.folder)
    if end is not None and end["cause"] == cause and "ended" in records.summary(run.folder):
        return None
    return f"{cause or state.state} (exit code {code})"

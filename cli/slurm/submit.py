"""Submit a job: from what it runs and requests to a run folder, a batch script and a job number."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cli.launch.entrypoint import Module, Script
from cli.launch.flavor import find_program
from cli.runs import records
from cli.runs.records import Submitted
from cli.slurm import control, profiles, reasons
from cli.slurm.batch import FOLDER, Batch, text
from cli.slurm.schema import SlurmSection
from hvd_train.errors import UserError, install_remedy


@dataclass(frozen=True)
class Submission:
    """What a job runs: the words after `ddl run`, and the section `slurm:` of its YAML file.

    `place` is the line that names the profile, for messages. `sweep` has the overrides of each task
    of an array.
    """

    name: str
    run: tuple[str, ...]
    slurm: SlurmSection | None = None
    place: str = ""
    sweep: tuple[tuple[str, ...], ...] = ()


def script_work(entry: Script | Module, options: Sequence[str]) -> Submission:
    """Return the work of a script or module under `ddl run` with `options`."""
    arguments = ("--", *entry.arguments) if entry.arguments else ()
    return Submission(entry.name, (*options, "--output", FOLDER, *entry.words, *arguments))


def batch(work: Submission, flags: Mapping[str, Any], **rest: Any) -> Batch:
    """Return the batch of `work`.

    `flags` are fields of `slurm:` from the command line, `rest` fields of `Batch`.
    """
    settings = profiles.settings(flags, work.slurm or SlurmSection(), profiles.folders(), work.place)
    iface = ("--iface", settings.interface) if settings.interface else ()
    return Batch(work.name, workdir=Path.cwd(), run=(*iface, *work.run), settings=settings, sweep=work.sweep, **rest)


def script(batch: Batch) -> str:
    """Return the batch script, which uses the programs of this environment; UserError for an invalid request."""
    ddl = find_program("ddl")
    if ddl is None:
        raise UserError(f"no ddl beside this Python or on PATH, and the job starts with it; {install_remedy()}")
    return text(batch, ddl, Path(sys.executable))


def submit(batch: Batch, script: str) -> str:
    """Write the run folder with `script`, submit it and return the number of the job.

    UserError if SLURM refuses the job; then the run folder is removed. If SLURM does not answer,
    the folder stays.
    """
    runs = [Submitted(batch.folder / task, None, task) for task in batch.tasks] or [Submitted(batch.folder, None)]
    if batch.sweep:
        runs = [Submitted(run.folder, None, run.task, batch.sweep[int(run.task or 0)]) for run in runs]
    try:
        return enqueue(batch.script, script, runs)
    except control.SlurmTimeout as error:
        raise UserError(
            f"{error} The job may be in the queue (squeue --me), so {relative(batch.folder)} is kept"
        ) from None
    except UserError:
        shutil.rmtree(batch.folder)
        raise


def enqueue(path: Path, script: str, runs: Sequence[Submitted]) -> str:
    """Write `script` to `path`, submit it for `runs`, record the job and return its number.

    UserError if SLURM refuses the job or does not answer; the files stay.
    """
    records.record(runs)
    _write(path, script)
    refusal = control.refusal(path)
    if refusal:
        raise UserError(f"SLURM can never run this job: {refusal}")
    job = control.submit(path)
    records.record([replace(run, job=job) for run in runs])
    return job


def not_exported(batch: Batch, forwarded: Sequence[str], environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield a warning if `--export` keeps variables of this shell from the job.

    By default SLURM passes all of them.
    """
    export = environment.get("SBATCH_EXPORT", batch.settings.sbatch.get("export"))
    if export is None or str(export).split(",")[0] == "ALL":
        return
    exported = str(export).split(",")
    names = [name for name in (*forwarded, "PYTHONPATH") if name in environment and name not in exported]
    if names:
        yield f"export={export}: the job does not get {', '.join(names)} of this shell"


def first_state(job: str) -> str | None:
    """Return the state of a submitted job and why it waits; None if SLURM does not tell."""
    try:
        state = control.states(job)[0]
    except (UserError, IndexError):
        return None
    if not state.reason:
        return state.state
    reason = reasons.meaning(state.reason)
    return f"{state.state} ({state.reason}{f': {reason.text}' if reason else ''})"


def relative(folder: Path) -> Path:
    """Return `folder` relative to the current folder if it lies below it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _write(script: Path, text: str) -> None:
    """Write the script with access for its owner only: it may contain values of variables."""
    draft = script.with_name(f".{script.name}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.rename(script)

"""`ddl cancel`: end submitted jobs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hvd_train.errors import UserError

if TYPE_CHECKING:
    from cli.slurm.runs import Submitted


def command(
    run: Annotated[
        Path, typer.Argument(help="Run folder of ddl submit, folder of a sweep, or folder of runs.", show_default=False)
    ],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask, where several jobs are meant.")] = False,
) -> None:
    """End the jobs of a run folder; ranks that get the time save a checkpoint."""
    from cli.slurm import control, jobs, runs

    going = [found for found, state in jobs.look(runs.required(run)) if state.going]
    if not going:
        print("nothing to cancel: every job has ended")
        return
    if len({found.job for found in going}) > 1 and not yes:
        _ask(run, going)
    control.cancel(found.id for found in going)
    print("\n".join(f"{found.id}: cancelled" for found in going))
    jobs.look(going)  # the folders keep what became of jobs that had not begun


def _ask(run: Path, going: list[Submitted]) -> None:
    listed = "\n".join(f"  {found.id}: {found.folder}" for found in going)
    what = f"{run} has {len({found.job for found in going})} jobs that go on:\n{listed}"
    if not sys.stdin.isatty():
        raise UserError(f"{what}\nto end all of them, give --yes; to end one, give its run folder")
    typer.confirm(f"{what}\nEnd all of them?", abort=True)

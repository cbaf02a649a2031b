"""`ddl cancel`: cancel submitted jobs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.arguments import options
from hvd_train.errors import UserError

if TYPE_CHECKING:
    from cli.runs.records import Submitted


def command(
    run: Annotated[
        Path, typer.Argument(help="Run folder of ddl submit, or a folder of run folders.", show_default=False)
    ],
    yes: Annotated[
        bool, typer.Option("-y", "--yes", rich_help_panel=options.START, help="Cancel several jobs without asking.")
    ] = False,
) -> None:
    """Cancel the jobs of a run folder; ranks save a checkpoint if SLURM gives them time."""
    from cli.runs import records
    from cli.slurm import control, jobs

    active = [submitted for submitted, state in jobs.states(records.required(run)) if state.active]
    if not active:
        print("nothing to cancel: every job has ended")
        return
    if len({submitted.job for submitted in active}) > 1 and not yes:
        _ask(run, active)
    control.cancel(submitted.id for submitted in active)
    print("\n".join(f"{submitted.id}: cancelled" for submitted in active))
    jobs.states(active)  # writes the end of jobs that had not begun to their run folders


def _ask(run: Path, active: list[Submitted]) -> None:
    listed = "\n".join(f"  {submitted.id}: {submitted.folder}" for submitted in active)
    what = f"{run} has {len({submitted.job for submitted in active})} jobs that have not ended:\n{listed}"
    if not sys.stdin.isatty():
        raise UserError(f"{what}\nto cancel all of them, give --yes; to cancel one, give its run folder")
    typer.confirm(f"{what}\nCancel all of them?", abort=True)

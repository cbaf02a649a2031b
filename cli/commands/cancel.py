"""`ddl cancel`: end submitted jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[
        Path, typer.Argument(help="Run folder of ddl submit, or the folder of a sweep.", show_default=False)
    ],
) -> None:
    """End the jobs of a run folder; ranks that get the time save a checkpoint."""
    from cli.slurm import control, jobs, runs

    going = [found.id for found, state in jobs.look(runs.required(run)) if state.going]
    if going:
        control.cancel(going)
    print("\n".join(f"{job}: cancelled" for job in going) or "nothing to cancel: every job has ended")

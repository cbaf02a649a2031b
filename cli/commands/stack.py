"""`ddl stack`: print the Python stack of every rank of a running job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.output.streams import say
from hvd_train.errors import ExitCode


def command(
    run: Annotated[Path, typer.Argument(help="Run folder of a running job.", show_default=False)],
) -> None:
    """Print the Python stack of every rank of a running job."""
    from cli.follow.ranks import read
    from cli.slurm.stacks import collect

    ranks = read(run)
    stacks = collect(ranks)
    if not any(stack["answered"] for stack in stacks):
        say(f"{run}: no rank answers: {stacks[0]['text']}")
        sys.exit(ExitCode.FAILURE)
    for rank, stack in zip(ranks, stacks, strict=True):
        print(f"rank {rank['rank']} on {rank['host']}, process {rank['pid']}")
        print("".join(f"    {line}\n" for line in stack["text"].strip().splitlines()))

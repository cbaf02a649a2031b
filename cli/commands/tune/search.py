"""`ddl tune`: search for good values of fields of a YAML file, with a run for each trial."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.arguments import options
from cli.search.schema import PrunerSection, SamplerSection
from hvd_train.text import strict_json


def command(
    file: Annotated[
        Path | None, typer.Argument(help="YAML file of the trials; not needed with --resume.", show_default=False)
    ] = None,
    overrides: options.Overrides = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=DOMAIN",
            help="Field to vary, such as 'optimizer.lr=log(1e-4,1e-1)' or 'model.hidden=[[32],[64,64]]'; repeatable.",
            rich_help_panel=options.START,
        ),
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option(
            "--space", metavar="FILE", help="YAML file with fields of 'search:'.", rich_help_panel=options.START
        ),
    ] = None,
    strategies: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:OPTION=VALUE]...,...",
            rich_help_panel=options.START,
            help="Synchronisation strategies to try, as for ddl compare; a dimension of the search.",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Trials of the whole search.",
            show_default="20, or all points of a grid",
            rich_help_panel=options.START,
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        options.choice(
            "--sampler",
            "sampler",
            SamplerSection.members(),
            help="How the next values are chosen.",
            show_default="tpe",
            rich_help_panel=options.START,
        ),
    ] = None,
    pruner: Annotated[
        str | None,
        options.choice(
            "--pruner",
            "pruner",
            PrunerSection.members(),
            help="Which trials end early.",
            show_default="none",
            rich_help_panel=options.START,
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            metavar="METRIC[:min|max][@METRIC=VALUE]",
            help="Figure to improve, such as accuracy, bytes_sent or seconds@accuracy=0.95; repeatable.",
            show_default="train.converge, return or loss",
            rich_help_panel=options.START,
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="Cross-validation: the folds of each trial.",
            show_default="none",
            rich_help_panel=options.START,
        ),
    ] = None,
    np: options.TrialNp = None,
    parallel: Annotated[
        str,
        typer.Option(
            "--parallel",
            metavar="auto|N",
            help="Runs at a time; auto: as many as fit on the slots.",
            rich_help_panel=options.WHERE,
        ),
    ] = "auto",
    hosts: options.Hosts = None,
    hostfile: options.Hostfile = None,
    engine: options.Engine = "auto",
    warm: Annotated[
        bool,
        typer.Option(
            "--warm", help="Keep the ranks alive between runs: for short trials.", rich_help_panel=options.START
        ),
    ] = False,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Submit each run as a job of SLURM.", rich_help_panel=options.WHERE)
    ] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach",
            help="Submit the search itself as a small job of SLURM, which requeues itself.",
            rich_help_panel=options.WHERE,
        ),
    ] = False,
    target: Annotated[
        float | None,
        typer.Option(
            metavar="VALUE",
            help="End the search when the first objective reaches this value.",
            rich_help_panel=options.START,
        ),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Start no trial after this time.", rich_help_panel=options.START),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Further attempts of a trial that lost a rank or a host.",
            show_default="1",
            rich_help_panel=options.FAILURES,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Go on with the search in this folder.", rich_help_panel=options.START),
    ] = None,
    iface: options.Iface = None,
    ssh_args: options.SshArgs = None,
    output: options.SearchFolder = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
) -> None:
    """Search for good values of fields of a YAML file: a folder with a run for each trial.

    The word 'search' may be left out. 'ddl tune show FOLDER' shows a search.
    """
    from cli.tune.objectives import parse
    from cli.tune.request import Request
    from cli.tune.session import run

    given = {
        "trials": trials,
        "sampler.name": sampler,
        "pruner.name": pruner,
        "objectives": [parse(word) for word in objective] if objective else None,
        "folds": folds,
        "target": target,
        "max_seconds": max_seconds,
        "retries": retries,
    }
    request = Request(
        file=file,
        overrides=tuple(overrides or ()),
        sets=tuple(sets or ()),
        space=space,
        strategies=strategies,
        search=tuple(f"search.{n}={strict_json.dumps(value)}" for n, value in given.items() if value is not None),
        np=np,
        parallel=parallel,
        hosts=hosts,
        hostfile=hostfile,
        engine=engine,
        iface=iface,
        ssh_args=ssh_args,
        warm=warm,
        slurm=slurm,
        detach=detach,
    )
    sys.exit(run(request, resume, output, dry_run=dry_run, quiet=quiet))

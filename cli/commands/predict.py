"""`ddl predict`: what a trained model says of new inputs."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.arguments import options


def command(
    run: options.TrainedRun,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Files or folders of the kind that the run was trained on; - for stdin.",
            show_default=False,
        ),
    ],
    output: options.PredictionFile = None,
    top: Annotated[
        int,
        typer.Option(
            "--top",
            metavar="K",
            min=1,
            help="Classes to name, the most probable first.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = 1,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="COLUMN",
            help="Column of the input to write beside the predictions; repeatable.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option(
            "--tokens",
            metavar="N",
            min=0,
            help="Tokens with which a language model continues each text.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = 16,
    data: options.DataOverrides = None,
    as_json: options.Json = False,
) -> None:
    """Write classes and probabilities, numbers, or continued texts for new inputs, in their order."""
    from hvd_train.rank import internal
    from hvd_train.saved.run import find_run
    from hvd_train.trained.predicting.request import Request, format_of

    find_run(run, data or ())
    form = format_of(output, as_json=as_json)
    request = Request(
        str(run), inputs, str(output) if output else None, form, list(data or ()), list(keep or ()), top, tokens
    )
    internal.become("hvd_train.trained.predicting", request.to_text())

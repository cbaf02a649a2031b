"""`ddl predict`: what a trained model says of new inputs."""

from __future__ import annotations

from dataclasses import asdict
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
            help="Classes to name, the most probable first, or items to recommend.",
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
        int | None,
        typer.Option(
            "--tokens",
            metavar="N",
            min=0,
            help="Most tokens that a model writes.",
            show_default="16 after a text; for a translation as in training",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    beams: Annotated[
        int,
        typer.Option(
            "--beams",
            metavar="N",
            help="Sequences that beam search keeps; 1: the most probable token at each place.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = 1,
    length_penalty: Annotated[
        float,
        typer.Option(
            "--length-penalty",
            metavar="X",
            help="Power of the length that beam search divides by; 0 prefers short sequences.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = 0.6,
    sample: Annotated[
        bool,
        typer.Option("--sample", help="Draw each token at random by its probability.", rich_help_panel=options.OUTPUT),
    ] = False,
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature",
            metavar="X",
            help="Below 1, --sample prefers probable tokens.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = 1.0,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            metavar="K",
            help="Draw from the K most probable tokens.",
            show_default="all",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p",
            metavar="P",
            help="Draw from the most probable tokens that together have probability P.",
            show_default="all",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="N",
            help="Seed of --sample; the result for a text does not depend on other texts.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = 0,
    data: options.DataOverrides = None,
    as_json: options.Json = False,
) -> None:
    """Write classes and probabilities, numbers, continued texts or translations for new inputs, in their order."""
    from hvd_train.rank import internal
    from hvd_train.saved.run import find_run
    from hvd_train.trained.generating.search import Search
    from hvd_train.trained.predicting.request import Request, format_of

    search = Search(beams, length_penalty, sample, temperature, top_k, top_p, seed)
    find_run(run, data or ())
    form = format_of(output, as_json=as_json)
    written = str(output) if output else None
    request = Request(str(run), inputs, written, form, list(data or ()), list(keep or ()), top, tokens, asdict(search))
    internal.become("hvd_train.trained.predicting", request.to_text())

"""`ddl serve`: answer requests over HTTP with the model of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.arguments import options
from cli.output import packages

PACKAGES = ("fastapi", "httptools", "prometheus_client", "uvicorn")

Host = Annotated[
    str,
    typer.Option(
        "--host",
        metavar="ADDRESS",
        help="Address to listen on; 0.0.0.0 is reachable from other hosts.",
        rich_help_panel=options.NETWORK,
    ),
]
Port = Annotated[
    int,
    typer.Option(
        "--port",
        metavar="PORT",
        help="Port to listen on; 0 is any free port.",
        min=0,
        max=65535,
        rich_help_panel=options.NETWORK,
    ),
]
MaxBatch = Annotated[
    int,
    typer.Option("--max-batch", metavar="N", help="Most records in a batch.", min=1, rich_help_panel=options.START),
]
MaxWait = Annotated[
    float,
    typer.Option(
        "--max-wait-ms",
        metavar="MS",
        help="Longest time that a record waits for others.",
        min=0,
        max=60_000,
        rich_help_panel=options.START,
    ),
]
MaxBody = Annotated[
    float,
    typer.Option(
        "--max-body-mb",
        metavar="MB",
        help="Largest body of a request.",
        min=0.001,
        max=10_000,
        rich_help_panel=options.START,
    ),
]
MaxConcurrency = Annotated[
    int,
    typer.Option(
        "--max-concurrency",
        metavar="N",
        help="Most requests at a time; more are answered with status 503.",
        min=1,
        rich_help_panel=options.START,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        help="Threads of the model.",
        min=1,
        max=1024,
        show_default="one for each core",
        rich_help_panel=options.START,
    ),
]


def command(
    run: options.TrainedRun,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    max_batch: MaxBatch = 64,
    max_wait_ms: MaxWait = 2.0,
    max_body_mb: MaxBody = 8.0,
    max_concurrency: MaxConcurrency = 256,
    threads: Threads = None,
) -> None:
    """Answer requests over HTTP with the model of a run; Ctrl-C or SIGTERM ends the server."""
    packages.check("serve", "serve", *PACKAGES)
    from hvd_train.rank import internal
    from hvd_train.saved.run import find_run
    from hvd_train.trained.serving.address import listen
    from hvd_train.trained.serving.settings import Settings

    find_run(run)
    opened = listen(host, port)
    opened.set_inheritable(True)
    limits = (max_batch, max_wait_ms, max_body_mb, max_concurrency)
    settings = Settings(str(run), opened.fileno(), *limits, threads)
    internal.become("hvd_train.trained.serving", settings.to_text())

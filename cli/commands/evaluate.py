"""`ddl evaluate`: measure the model of a run on held-out samples, or on other data."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.arguments import options
from cli.output import pictures
from hvd_train.text.names import printable

if TYPE_CHECKING:
    from hvd_train.saved.run import Run


def command(
    run: options.TrainedRun,
    split: options.Split = "test",
    data: options.DataOverrides = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Metrics in place of the run's, such as f1,auroc, or names of ddl list metrics.",
            show_default="those of the run",
            rich_help_panel=options.START,
        ),
    ] = None,
    np: options.Np = None,
    hosts: options.Hosts = None,
    hostfile: options.Hostfile = None,
    iface: options.Iface = None,
    ssh_args: options.SshArgs = None,
    output: options.ResultFolder = None,
    as_json: options.Json = False,
) -> None:
    """Measure the model of a run: metrics, classes, worst samples, evaluate.json, and pictures."""
    pictures.check("evaluate")
    from cli.trained.evaluate import text
    from cli.trained.folder import result_folder
    from cli.trained.launch import Ranks, run_task

    found = _measured(run, data or [], metrics)
    with result_folder(found, "evaluate", output) as (folder, final):
        result = run_task(found, "evaluate", {"split": split}, Ranks(np, hosts, hostfile, iface, ssh_args), folder)
        result = {"run": str(found.folder), "checkpoint": str(found.checkpoint), **result}
        files = _save(result, folder)
    print(text.json(result) if as_json else text.text(result, None if sys.stdout.isatty() else 120), end="")
    print(printable(f"{final}: {', '.join(files)} written"), file=sys.stderr)


def _measured(path: Path, data: list[str], metrics: str | None) -> Run:
    """Return the run at `path` with the data and the metrics to measure; UserError if they do not fit."""
    from cli.trained.evaluate.data import held_out
    from cli.trained.evaluate.metrics import sections
    from hvd_train.saved.run import find_run

    found = find_run(path)
    if data:
        found = find_run(path, held_out(found.config.data, data))
    config = found.config
    train = config.train
    if metrics is not None:
        train = train.model_copy(update={"metrics": sections(metrics, found.data.get("task", ""))})
    samples = config.data.model_copy(update={"transforms": []})  # they change training samples only
    return replace(found, config=config.model_copy(update={"train": train, "data": samples}))


def _save(result: dict[str, object], folder: Path) -> list[str]:
    """Write evaluate.json and the pictures, and return the names of the files."""
    from cli.trained.evaluate import pictures as drawn
    from hvd_train.text import strict_json

    (folder / "evaluate.json").write_text(strict_json.dumps(result) + "\n", encoding="utf-8")
    return ["evaluate.json", *drawn.save(result, folder)]

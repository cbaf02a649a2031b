"""`ddl explain`: show which parts of samples decide what a trained model answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.arguments import options
from cli.output import packages, pictures
from hvd_train.config import plugins
from hvd_train.errors import UserError
from hvd_train.text.names import printable

TCAV = "tcav"
METHODS = (*plugins.names("hvd_train.trained.explaining.methods"), TCAV)
BASELINES = ("auto", "zero", "mean")


def command(
    path: options.TrainedRun,
    method: Annotated[
        str,
        options.choice(
            "--method",
            "method",
            METHODS,
            help=options.METHOD_HELP,
            rich_help_panel=options.START,
        ),
    ] = "integrated_gradients",
    samples: options.Samples = 16,
    output_name: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="Class, token or number of the output that is explained.",
            show_default="the one with the highest score",
            rich_help_panel=options.START,
        ),
    ] = None,
    baseline: Annotated[
        str,
        options.choice(
            "--baseline",
            "baseline",
            BASELINES,
            help="What stands for an absent part.",
            rich_help_panel=options.START,
        ),
    ] = "auto",
    concepts: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|CLASS,...",
            help="tcav: folder with a folder of examples for each concept, or classes whose training samples are examples.",
            rich_help_panel=options.START,
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="tcav: layer whose outputs are looked at.",
            show_default="the second last",
            rich_help_panel=options.START,
        ),
    ] = None,
    split: options.Split = "test",
    data: options.DataOverrides = None,
    np: options.Np = None,
    hosts: options.Hosts = None,
    hostfile: options.Hostfile = None,
    iface: options.Iface = None,
    ssh_args: options.SshArgs = None,
    output: options.ResultFolder = None,
    as_json: options.Json = False,
) -> None:
    """Attribute what a trained model answers to parts of samples: a table, report.json, explain.png."""
    pictures.check("explain")
    packages.check("explain", "explain", "captum")
    from cli.trained.folder import result_folder
    from cli.trained.launch import Ranks, run_task
    from hvd_train.saved.run import find_run

    run = find_run(path, data or ())
    task, own = _task(method, baseline, concepts, layer)
    chosen = {"samples": samples, "split": split, "output": output_name, **own}
    with result_folder(run, "explain", output) as (draft, final):
        found = run_task(run, task, chosen, Ranks(np, hosts, hostfile, iface, ssh_args), draft)

        heading = f"{method.replace('_', ' ')}: {run.folder.name}, {run.checkpoint.name}, {split}"
        shown = _saved(task, heading, found, draft, as_json)
    print(shown, end="")
    print(printable(f"{final} written"), file=sys.stderr if as_json else sys.stdout)


def _task(method: str, baseline: str, concepts: str | None, layer: str | None) -> tuple[str, dict[str, Any]]:
    """Return the task of a method and the options that it has alone; UserError for options of another one."""
    if method != TCAV:
        given = "--concepts" if concepts is not None else "--layer" if layer is not None else None
        if given is not None:
            raise UserError(f"{given} is for --method {TCAV}; leave it out, or take that method")
        return "explain", {"method": method, "baseline": baseline}
    if concepts is None:
        raise UserError(f"--method {TCAV}: --concepts is missing; give a folder of examples, or names of classes")
    return TCAV, {"concepts": str(Path(concepts).absolute()) if Path(concepts).is_dir() else concepts, "layer": layer}


def _saved(task: str, heading: str, found: dict[str, Any], folder: Path, as_json: bool) -> str:
    """Write the files of the report to `folder`, and return what is printed."""
    from cli.trained.explain import concepts, report, save

    width = None if sys.stdout.isatty() else 140
    if task == TCAV:
        concepts.save(heading, found, folder)
        return concepts.json(found) if as_json else concepts.text(found, width)
    save.save(heading, found, folder)
    return report.json(found) if as_json else report.text(found, width)

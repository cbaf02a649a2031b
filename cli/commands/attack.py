"""`ddl attack`: the accuracy of a trained model under attacks and under corruptions."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from cli.arguments import options
from cli.output import pictures
from hvd_train.config import plugins
from hvd_train.errors import UserError
from hvd_train.text.names import find

CORRUPTIONS = "corruptions"
METHODS = (*plugins.names(plugins.FAMILIES["attacks"]), CORRUPTIONS)


def _methods(words: object) -> list[str]:
    return [find(word.strip(), METHODS, "--method: no method") for word in str(words).split(",")]


def _epsilons(words: object) -> list[float]:
    """Parse sizes of perturbations; UserError for what is no finite number from 0 on."""
    try:
        values = [float(word) for word in str(words).split(",")]
    except ValueError:
        values = [-1.0]
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise UserError(f"--epsilon: expected numbers from 0 on, such as 0,0.01,0.1, got '{words}'")
    return values


def command(
    run: options.TrainedRun,
    method: Annotated[
        Sequence[str] | None,
        typer.Option(
            "--method",
            metavar=",".join(METHODS),
            help=options.METHOD_HELP,
            show_default="fgsm,pgd,corruptions; of texts and regressions corruptions",
            parser=_methods,
            rich_help_panel=options.START,
        ),
    ] = None,
    epsilon: Annotated[
        Sequence[float] | None,
        typer.Option(
            metavar="SIZE,...",
            help="Sizes of perturbations: pixel values of 0 to 1, or standard deviations of the columns of a table.",
            show_default="by the kind of data",
            parser=_epsilons,
            rich_help_panel=options.START,
        ),
    ] = None,
    norm: Annotated[
        str,
        options.choice("--norm", "norm", ("linf", "l2"), help="What a size limits.", rich_help_panel=options.START),
    ] = "linf",
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Steps along the gradient.",
            show_default="10 of pgd, 100 of apgd",
            rich_help_panel=options.START,
        ),
    ] = None,
    restarts: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Random starts.", show_default="1", rich_help_panel=options.START),
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Forward passes of the square attack.",
            show_default="1000",
            rich_help_panel=options.START,
        ),
    ] = None,
    samples: options.Samples = 1000,
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
    """Measure the accuracy under attacks and corruptions: tables, attack.json, and pictures."""
    from cli.trained.attack.report import Report
    from cli.trained.folder import result_folder
    from cli.trained.launch import Ranks, run_task
    from hvd_train.saved.run import find_run

    pictures.check("attack")
    trained = find_run(run, data or ())
    limits = {"steps": steps, "restarts": restarts, "queries": queries}
    asked = {
        "methods": list(dict.fromkeys(method or ())),
        "epsilons": list(epsilon or ()),
        "norm": norm,
        "samples": samples,
        "split": split,
        **{name: value for name, value in limits.items() if value is not None},
    }
    ranks = Ranks(np, hosts, hostfile, iface, ssh_args)
    with result_folder(trained, "attack", output) as (draft, final):
        report = Report(trained.folder.name, run_task(trained, "attack", asked, ranks, draft))
        report.save(draft)
    sys.stdout.write(report.json() if as_json else report.text(final))

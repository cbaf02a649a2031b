"""`ddl export`: write the model of a run for other programs, and judge what was written."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cli.arguments import options
from hvd_train.config import plugins
from hvd_train.errors import ExitCode, UserError
from hvd_train.text.names import printable

_FORMATS = plugins.names("hvd_train.trained.exporting.formats")
_QUANTIZERS = plugins.names("hvd_train.trained.exporting.quantizers")
_KINDS = list(dict.fromkeys(name.partition("_")[2].replace("_", "-") for name in _QUANTIZERS))


def _sparsity(word: object) -> float:
    """Parse a share below 1; UserError for any other word."""
    try:
        share = float(str(word))
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UserError(f"--prune: expected a share of the weights from 0 to below 1, such as 0.8, got '{word}'")
    return share


def command(
    run: options.TrainedRun,
    to: Annotated[
        str, options.choice("--to", "format", _FORMATS, help="Format to convert to.", rich_help_panel=options.OUTPUT)
    ],
    quantize: Annotated[
        str | None,
        options.choice(
            "--quantize", "quantizer", _KINDS, help="Numbers of fewer bits.", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(
            metavar="SPARSITY",
            help="Share of the weights that is set to zero, the smallest first.",
            parser=_sparsity,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            min=0,
            help="Write nothing and exit with code 1 if the metric is worse by more points.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Licence of the model, for its card.", rich_help_panel=options.OUTPUT),
    ] = None,
    latency_seconds: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="Time for each case of the latencies.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = 1.0,
    data: options.DataOverrides = None,
    np: options.Np = None,
    hosts: options.Hosts = None,
    hostfile: options.Hostfile = None,
    iface: options.Iface = None,
    ssh_args: options.SshArgs = None,
    output: options.ResultFolder = None,
    as_json: options.Json = False,
) -> None:
    """Write the model of a run as a file for other programs, read it back, and compare it with the original."""
    from cli.trained.export import report, save
    from cli.trained.folder import result_folder
    from cli.trained.launch import Ranks, run_task
    from hvd_train.saved.run import find_run
    from hvd_train.text import strict_json

    found = find_run(run, data or ())
    wanted = {"to": to, "quantize": quantize, "prune": prune, "max_loss": max_loss, "seconds": latency_seconds}
    given = {name: value for name, value in wanted.items() if value is not None}
    with result_folder(found, "export", output) as (draft, final):
        result = run_task(found, "export", given, Ranks(np, hosts, hostfile, iface, ssh_args), draft)
        print(strict_json.dumps(result, indent=1) if as_json else report(result))
        if result["kept"] is None:
            sys.exit(ExitCode.FAILURE)
        save(draft, found, result, licence)
    print(printable(f"{final} written"), file=sys.stderr)

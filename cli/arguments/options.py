"""The options that commands share, each with one name, one help text and one panel.

A command annotates a parameter with one of these types. An option of a single command is defined in
the file of that command and belongs to one of the panels below.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from cli.launch import emulation
from cli.launch.engines import ENGINES
from cli.launch.job import Binding
from hvd_train.config import plugins
from hvd_train.errors import UserError
from hvd_train.text.names import find

PANELS = ("Where", "Start", "Failures", "Network", "Output")
WHERE, START, FAILURES, NETWORK, OUTPUT = PANELS
MOST_RANKS = 999_999
BINDINGS = get_args(Binding)
LAUNCHERS = ("auto", *plugins.names("cli.launch.launchers"))
BATCH_LAUNCHERS = ("auto", "srun", "mpirun")


def choice(option: str, kind: str, choices: Sequence[str], **more: Any) -> Any:
    """Return a typer option whose value is one of `choices`, in any case.

    UserError for another value calls it a `kind` that does not exist.
    """

    def parse(word: str) -> str:
        return find(word, choices, f"{option}: no {kind}")

    return typer.Option(option, metavar="|".join(choices), parser=parse, autocompletion=lambda: list(choices), **more)


def _launcher(choices: Sequence[str]) -> Any:
    return choice("--launcher", "launcher", choices, help="Program that starts the ranks.", rich_help_panel=WHERE)


def _np(**more: Any) -> Any:
    return typer.Option(
        "-n", "--np", metavar="N", help="Number of ranks.", parser=_ranks, rich_help_panel=WHERE, **more
    )


def _ranks(word: object) -> int:
    """Parse a number of ranks; UserError for any other word."""
    if not re.fullmatch(r"[-+]?\d{1,18}", str(word)):
        raise UserError(f"--np: expected a number of ranks, got '{word}'")
    number = int(str(word))
    if not 1 <= number <= MOST_RANKS:
        bound = "at least 1 rank" if number < 1 else f"at most {MOST_RANKS} ranks"
        raise UserError(f"--np: expected {bound}, got {number}")
    return number


def _output(default: str, metavar: str = "DIR") -> Any:
    return typer.Option(
        "-o",
        "--output",
        metavar=metavar,
        help="Path to write to.",
        parser=_writable,
        show_default=default,
        rich_help_panel=OUTPUT,
    )


def _writable(word: str) -> Path:
    """Parse a path; UserError if it is not UTF-8, which JSON and TensorBoard require."""
    path = Path(word)
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise UserError(f"--output: {path.absolute()} is not UTF-8; give another path") from None
    return path


def _seconds(word: object) -> float:
    """Parse a number of seconds above 0; UserError for any other word."""
    try:
        seconds = float(str(word))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"--timeout: expected seconds above 0, got '{word}'")
    return seconds


Target = Annotated[str | None, typer.Argument(metavar="TARGET", help="YAML file or Python script.", show_default=False)]
Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE|ARG",
        help="Overrides of the YAML file, such as train.epochs=3; or the arguments of the script.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides of the YAML file, such as train.epochs=3.", show_default=False),
]

TrainedRun = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder, or one of its checkpoints.", show_default=False)
]
DataOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="KEY=VALUE",
        help="Option of the data section that differs from the run, such as path=new.csv; repeatable.",
        rich_help_panel=START,
    ),
]
Split = Annotated[
    str,
    typer.Option(
        "--split",
        metavar="NAME",
        help="Samples to take: test, train, or another split of the data.",
        rich_help_panel=START,
    ),
]
Samples = Annotated[
    int, typer.Option("--samples", min=1, metavar="N", help="Most samples to take.", rich_help_panel=START)
]
METHOD_HELP = "How to do it; docs/after-training.md describes each method."

Np = Annotated[int | None, _np(show_default="all slots, or 1")]
BatchNp = Annotated[int | None, _np(show_default="nodes times ranks on each")]
FixedNp = Annotated[int, _np()]
TrialNp = Annotated[int | None, _np(show_default="1")]
NpOrTwo = Annotated[int | None, _np(show_default="all slots, or 2")]
Hosts = Annotated[
    str | None,
    typer.Option(
        "-H", "--hosts", metavar="HOSTS", help="Hosts and their slots, such as h1:4,h2:4.", rich_help_panel=WHERE
    ),
]
Hostfile = Annotated[
    Path | None,
    typer.Option(
        "--hostfile",
        metavar="FILE",
        help="Hostfile in the dialect of Open MPI, MPICH or Horovod.",
        rich_help_panel=WHERE,
    ),
]
Engine = Annotated[
    str,
    choice("--engine", "engine", ENGINES, help="Library that carries messages between ranks.", rich_help_panel=WHERE),
]
Launcher = Annotated[str, _launcher(LAUNCHERS)]
BatchLauncher = Annotated[str, _launcher(BATCH_LAUNCHERS)]
Bind = Annotated[
    str | None,
    choice(
        "--bind", "binding", BINDINGS, help="Part of the machine to which each rank is bound.", rich_help_panel=WHERE
    ),
]

Module = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--module",
        metavar="MODULE",
        help="Run a module instead of a file; all words after it are its arguments.",
        rich_help_panel=START,
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "-x",
        "--env",
        metavar="KEY[=VALUE]",
        help="Environment variable for all ranks; repeatable.",
        rich_help_panel=START,
    ),
]
EnvFile = Annotated[
    Path | None,
    typer.Option(
        "--env-file",
        metavar="FILE",
        help="File of environment variables for all ranks, one KEY=VALUE a line.",
        rich_help_panel=START,
    ),
]
LauncherArgs = Annotated[
    str | None,
    typer.Option(
        "--launcher-args",
        metavar="WORDS",
        help="More options for mpirun, srun or horovodrun.",
        rich_help_panel=START,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be started, without starting it.", rich_help_panel=START)
]

Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        help="End the job after this many seconds.",
        parser=_seconds,
        rich_help_panel=FAILURES,
    ),
]

Iface = Annotated[
    str | None,
    typer.Option(
        "--iface",
        metavar="NAME|SUBNET",
        help="Interface or subnet between the hosts, such as ib0 or 10.1.0.0/16.",
        show_default="by the routes to them",
        rich_help_panel=NETWORK,
    ),
]
SshArgs = Annotated[
    str | None,
    typer.Option(
        "--ssh-args",
        metavar="WORDS",
        help="Options for ssh to the other hosts, such as '-p 2222 -J bastion'.",
        rich_help_panel=NETWORK,
    ),
]
LatencyMs = Annotated[
    float, typer.Option("--latency-ms", metavar="MS", help=emulation.LATENCY, rich_help_panel=NETWORK)
]
Gbps = Annotated[
    float | None,
    typer.Option("--gbps", metavar="GBPS", help=emulation.GBPS, show_default="no limit", rich_help_panel=NETWORK),
]
Straggler = Annotated[
    str | None,
    typer.Option("--straggler", metavar="RANK:FACTOR", help=emulation.STRAGGLER, rich_help_panel=NETWORK),
]

RunFolder = Annotated[Path | None, _output("runs/NAME-TIME")]
BenchFolder = Annotated[Path | None, _output("bench-WHAT-TIME")]
SearchFolder = Annotated[Path | None, _output("tune-NAME-TIME")]
CompareFolder = Annotated[Path | None, _output("compare-NAME-TIME")]
PredictionFile = Annotated[Path | None, _output("CSV on stdout", metavar="FILE.csv|.jsonl|.parquet")]
ResultFolder = Annotated[Path | None, _output("RUN/COMMAND-TIME")]
ShownFolder = Annotated[Path | None, _output("FOLDER")]
Picture = Annotated[Path | None, _output("data-FILE.png", metavar="PNG")]
Tee = Annotated[
    str,
    typer.Option(
        "--tee", metavar="RANKS", help="Ranks whose output is shown, such as 0,2, or all.", rich_help_panel=OUTPUT
    ),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.", rich_help_panel=OUTPUT)]
Verbose = Annotated[
    bool,
    typer.Option(
        "-v", "--verbose", help="Print the launch command and the output of the launcher.", rich_help_panel=OUTPUT
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=OUTPUT)]

"""The options that commands share: each has one name, one help text and one panel.

A command annotates a parameter with one of these types. An option of one command alone stands in that command's file,
in one of the panels below.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from cli import emulation
from cli.engines import ENGINES
from cli.launchers.base import Binding
from hvd_train import plugins
from hvd_train.errors import UserError
from hvd_train.names import find

PANELS = ("Where", "Start", "Failures", "Network", "Output")
WHERE, START, FAILURES, NETWORK, OUTPUT = PANELS
MOST_RANKS = 999_999
BINDINGS = get_args(Binding)
LAUNCHERS = ("auto", *plugins.names("cli.launchers"))
BATCH_LAUNCHERS = ("auto", "srun", "mpirun")


def choice(option: str, kind: str, choices: Sequence[str], **more: Any) -> Any:
    """A typer option whose value is one of `choices`, in any case; UserError says that no such `kind` exists."""

    def parse(word: str) -> str:
        return find(word, choices, f"{option}: no {kind}")

    return typer.Option(option, metavar="|".join(choices), parser=parse, autocompletion=lambda: list(choices), **more)


def _launcher(choices: Sequence[str]) -> Any:
    return choice("--launcher", "launcher", choices, help="What starts the ranks.", rich_help_panel=WHERE)


def _np(**more: Any) -> Any:
    return typer.Option(
        "-n", "--np", metavar="N", help="Number of ranks.", parser=_ranks, rich_help_panel=WHERE, **more
    )


def _ranks(word: object) -> int:
    """A number of ranks; UserError for any other word."""
    if not re.fullmatch(r"[-+]?\d{1,18}", str(word)):
        raise UserError(f"--np: expected a number of ranks, got '{word}'")
    number = int(str(word))
    if not 1 <= number <= MOST_RANKS:
        bound = "at least 1 rank" if number < 1 else f"at most {MOST_RANKS} ranks"
        raise UserError(f"--np: expected {bound}, got {number}")
    return number


def _output(default: str, metavar: str = "DIR") -> Any:
    return typer.Option(
        "--output",
        metavar=metavar,
        help="Where to write.",
        parser=_writable,
        show_default=default,
        rich_help_panel=OUTPUT,
    )


def _writable(word: str) -> Path:
    """The path `word`; UserError where TensorBoard and JSON cannot write its name."""
    path = Path(word)
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise UserError(f"--output: {path.absolute()} is not UTF-8; give another name") from None
    return path


Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]... | [ARG]...",
        help="Overrides of the YAML file; or all words behind a script, which are the script's own.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of the YAML file.", show_default=False),
]

Np = Annotated[int | None, _np(show_default="all slots, or 1")]
BatchNp = Annotated[int | None, _np(show_default="those of all nodes")]
FixedNp = Annotated[int, _np()]
NpOrTwo = Annotated[int | None, _np(show_default="all slots, or 2")]
Hosts = Annotated[
    str | None, typer.Option("-H", "--hosts", help="Hosts and slots, as h1:4,h2:4.", rich_help_panel=WHERE)
]
Hostfile = Annotated[
    Path | None,
    typer.Option(
        "--hostfile", metavar="FILE", help="File of hosts: Open MPI, MPICH or Horovod dialect.", rich_help_panel=WHERE
    ),
]
Engine = Annotated[
    str, choice("--engine", "engine", ENGINES, help="What carries messages between ranks.", rich_help_panel=WHERE)
]
Launcher = Annotated[str, _launcher(LAUNCHERS)]
BatchLauncher = Annotated[str, _launcher(BATCH_LAUNCHERS)]
Bind = Annotated[
    str | None,
    choice("--bind", "binding", BINDINGS, help="Part of a machine that a rank is bound to.", rich_help_panel=WHERE),
]

Module = Annotated[
    str | None,
    typer.Option(
        "-m", "--module", help="Run a module instead of a file; the words behind it are its own.", rich_help_panel=START
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option("-x", "--env", metavar="KEY[=VALUE]", help="Variable for all ranks.", rich_help_panel=START),
]
EnvFile = Annotated[
    Path | None,
    typer.Option(
        "--env-file",
        metavar="FILE",
        help="File of variables for all ranks: KEY=VALUE lines.",
        rich_help_panel=START,
    ),
]
LauncherArgs = Annotated[
    str | None,
    typer.Option(
        "--launcher-args",
        metavar="WORDS",
        help="Words for mpirun, srun or horovodrun, after those of ddl.",
        rich_help_panel=START,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be started, and start nothing.", rich_help_panel=START)
]

Timeout = Annotated[
    float | None,
    typer.Option("--timeout", help="Seconds after which the job is ended.", rich_help_panel=FAILURES),
]

Iface = Annotated[
    str | None,
    typer.Option(
        "--iface",
        help="Interface or subnet that joins the hosts.",
        show_default="by the route to them",
        rich_help_panel=NETWORK,
    ),
]
SshArgs = Annotated[
    str | None,
    typer.Option(
        "--ssh-args",
        metavar="WORDS",
        help="Words for ssh to the other hosts, as '-p 2222 -J bastion'.",
        rich_help_panel=NETWORK,
    ),
]
LatencyMs = Annotated[float, typer.Option("--latency-ms", help=emulation.LATENCY, rich_help_panel=NETWORK)]
Gbps = Annotated[
    float | None,
    typer.Option("--gbps", help=emulation.GBPS, show_default="no limit", rich_help_panel=NETWORK),
]
Straggler = Annotated[
    str | None,
    typer.Option("--straggler", metavar="RANK:FACTOR", help=emulation.STRAGGLER, rich_help_panel=NETWORK),
]

RunFolder = Annotated[Path | None, _output("runs/NAME-TIME")]
BenchFolder = Annotated[Path | None, _output("bench-WHAT-TIME")]
CompareFolder = Annotated[Path | None, _output("compare-NAME-TIME")]
Picture = Annotated[Path | None, _output("data-FILE.png", metavar="PNG")]
Tee = Annotated[
    str,
    typer.Option("--tee", metavar="RANKS", help="Ranks whose output is shown: 0,2 or all.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show errors only.", rich_help_panel=OUTPUT)]
Verbose = Annotated[
    bool,
    typer.Option("-v", "--verbose", help="Show the command and the launcher's words.", rich_help_panel=OUTPUT),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=OUTPUT)]

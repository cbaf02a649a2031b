"""The `ddl` command: one subcommand a file in `cli.commands`."""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import typer

from hvd_train import plugins
from hvd_train.errors import ExitCode, UserError

app = typer.Typer(
    help="Distributed deep learning on Horovod and MPI, from one YAML file.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _name in plugins.names("cli.commands"):
    app.command(_name)(importlib.import_module(f"cli.commands.{_name}").command)


def main() -> None:
    """Run the command line; what the user got wrong is one message on stderr and exit code 2."""
    arguments = sys.argv[1:] or ["--help"]
    try:
        sys.exit(app(arguments, standalone_mode=False))
    except UserError as error:
        _complain(str(error), error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        # A usage error of click, which newer versions of typer carry inside: there is no class to name.
        if not hasattr(error, "format_message"):
            raise
        _complain(error.format_message(), ExitCode.BAD_INPUT)


def _complain(text: str, code: int) -> NoReturn:
    for line in text.splitlines():
        print(f"ddl: {line}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""The `ddl` command: one subcommand a file in `cli.commands`."""

from __future__ import annotations

import importlib
import sys

import typer

from hvd_train import plugins
from hvd_train.errors import UserError

app = typer.Typer(
    help="Distributed deep learning on Horovod and MPI, from one YAML file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _name in plugins.names("cli.commands"):
    app.command(_name)(importlib.import_module(f"cli.commands.{_name}").command)


def main() -> None:
    """Run the command line; what the user got wrong is one message on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"ddl: {line}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

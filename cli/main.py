"""The `ddl` command: one subcommand a file in `cli.commands`."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, NoReturn

import typer

from cli.parser import Command
from hvd_train import plugins
from hvd_train.errors import ExitCode, UserError

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

for _name in plugins.names("cli.commands"):
    app.command(_name, cls=Command)(importlib.import_module(f"cli.commands.{_name}").command)


@app.callback(invoke_without_command=True)
def _ddl(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Distributed deep learning on Horovod and MPI, from one YAML file."""
    if show_version:
        print(f"ddl {_version()}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ddl")
    except PackageNotFoundError:
        return "(not installed)"


def main() -> None:
    """Run the command line; what the user got wrong is one message on stderr and exit code 2."""
    try:
        sys.exit(app(standalone_mode=False))
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

"""The command `ddl`; each file in `cli.commands` is one subcommand, and each folder a group of them."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from typing import Annotated, Any

import typer

from cli.arguments.parser import Commands, PlainCommand, group_class, option_names
from cli.output import streams
from hvd_train.config import plugins
from hvd_train.errors import ExitCode, UserError, nearest

app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _add_commands(group: typer.Typer, package: str) -> None:
    for name in plugins.names(package):
        module = importlib.import_module(f"{package}.{name}")
        if hasattr(module, "command"):
            group.command(name, cls=PlainCommand)(module.command)
        else:
            inner = typer.Typer(
                cls=group_class(getattr(module, "DEFAULT", None)), rich_markup_mode=None, help=module.__doc__
            )
            _add_commands(inner, module.__name__)
            group.add_typer(inner, name=name)


_add_commands(app, "cli.commands")


@app.callback(invoke_without_command=True)
def _ddl(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Distributed deep learning on Horovod and MPI, from one YAML file.

    Start with: ddl init, then ddl run --np 2 model.yaml
    """
    if show_version:
        print(f"ddl {_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ddl")
    except PackageNotFoundError:
        return "(not installed)"


def main() -> None:
    """Run the command line and exit with its code.

    A user's mistake is one message on stderr and exit code 2.
    """
    streams.prepare()
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except streams.Unwritable as error:
        code = 128 + signal.SIGPIPE if error.unread else _complain(str(error), ExitCode.FAILURE)
    sys.exit(code)


def run(words: list[str]) -> Any:
    """Run a command line and return its exit code; messages of errors are on stderr."""
    try:
        return app(words, prog_name="ddl", standalone_mode=False) or 0
    except SystemExit as end:
        return end.code or 0
    except UserError as error:
        return _complain(str(error), error.exit_code)
    except typer.Abort:
        return 130
    except OSError as error:
        if error.filename is None:
            raise
        code = ExitCode.FAILURE if error.errno == errno.ENOSPC else ExitCode.BAD_INPUT
        return _complain(f"{os.fsdecode(error.filename)}: {error.strerror}", code)
    except streams.Unwritable:
        raise
    except Exception as error:
        # A usage error of click. Newer versions of typer bundle click, so its class cannot be named
        # here.
        if not hasattr(error, "format_message"):
            raise
        return _complain(_usage(error), ExitCode.BAD_INPUT)


def _usage(error: Any) -> str:
    """Return a usage error in one line."""
    known = getattr(getattr(error, "ctx", None), "command", None)
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):
        return f"no option '{error.option_name}'{nearest(error.option_name, option_names(known))}"
    return " ".join(error.format_message().split())


def _complain(text: str, code: int) -> int:
    """Print `text` on stderr and return `code`."""
    streams.say(text)
    return code


if __name__ == "__main__":
    main()

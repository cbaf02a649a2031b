"""The classes with which every command of `ddl` parses its command line and formats its help."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from typer.core import TyperCommand, TyperGroup

from cli.arguments import argv
from cli.arguments.options import PANELS
from hvd_train.errors import UserError
from hvd_train.text.names import find

ORDER = ("Arguments", *PANELS, "Options")


def option_names(command: Any) -> set[str]:
    """Return the names of all options of `command`."""
    return {n for p in command.params for n in (*p.opts, *p.secondary_opts) if n.startswith("-")} | {"-h", "--help"}


class PlainCommand(TyperCommand):
    """A command with one section of help per panel, and without markup.

    A parameter named `arguments` receives the words of the script that the command runs.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{**settings, "rich_markup_mode": None})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        taking = [p for p in self.params if p.param_type_name == "option" and not getattr(p, "is_flag", False)]
        valued = {name: max(p.opts, key=len) for p in taking for name in p.opts}
        if any(p.name == "arguments" for p in self.params):
            args = argv.for_parser(args, valued)
        repeatable = {max(p.opts, key=len) for p in taking if getattr(p, "multiple", False)}
        if not ctx.resilient_parsing:
            argv.check_values(args, valued, repeatable, option_names(self))
        rest = super().parse_args(ctx, args)
        self._check_numbers(ctx)
        return rest

    def _check_numbers(self, ctx: Any) -> None:
        for p in self.params:
            value = ctx.params.get(p.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{max(p.opts, key=len)}: expected a number, got {value}")

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [p for p in self.params if p.param_type_name == "argument"]
        return [self.options_metavar or "", *map(_usage, arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for p in self.get_params(ctx):
            record = p.get_help_record(ctx)
            is_argument = p.param_type_name == "argument"
            title = "Arguments" if is_argument else "Options"
            if record is not None and is_argument:
                record = (_name(p), record[1])
            if record is not None:
                panels.setdefault(getattr(p, "rich_help_panel", None) or title, []).append(record)
        for title in sorted(panels, key=ORDER.index):
            with formatter.section(title):
                formatter.write_dl(panels[title])

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the whole first line of the help."""
        return (self.help or "").strip().partition("\n")[0]


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _usage(argument: Any) -> str:
    """Return the name of an argument, in brackets if it is optional, with dots if repeatable."""
    name = _name(argument) if argument.required else f"[{_name(argument)}]"
    return f"{name}..." if argument.nargs < 0 else name


class Commands(TyperGroup):
    """A group of commands: names match in any case, and UserError suggests the nearest one.

    Words that do not begin with a command are those of the command `default`, if there is one.
    """

    default: ClassVar[str | None] = None

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            raise UserError(f"{ctx.info_name}: expected a command (choices: {', '.join(self.list_commands(ctx))})")
        if self.default is not None and args and args[0] not in self.commands:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not ctx.resilient_parsing:
            group = f"{ctx.info_name}: " if ctx.parent else ""
            args = [find(args[0], self.commands, f"{group}no command"), *args[1:]]
        return super().resolve_command(ctx, args)


def group_class(default: str | None) -> type[Commands]:
    """Return the class of a group whose words are those of the command `default` unless they name another."""
    return type("CommandsWithDefault", (Commands,), {"default": default}) if default else Commands

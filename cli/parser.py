"""How every command of `ddl` reads its command line and shows its help."""

from __future__ import annotations

import math
from typing import Any

from typer.core import TyperCommand, TyperGroup

from cli import argv
from cli.options import PANELS
from hvd_train.errors import UserError
from hvd_train.names import find

ORDER = ("Arguments", *PANELS, "Options")


def option_names(command: Any) -> set[str]:
    """All names of the options of `command`."""
    return {n for p in command.params for n in (*p.opts, *p.secondary_opts) if n.startswith("-")} | {"-h", "--help"}


class Command(TyperCommand):
    """A command whose help has a section for each panel, and none of whose help passes through markup.

    The parameter `arguments` of a command stands for the words of the script that it runs.
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

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for p in self.get_params(ctx):
            record = p.get_help_record(ctx)
            title = "Arguments" if p.param_type_name == "argument" else "Options"
            if record is not None:
                panels.setdefault(getattr(p, "rich_help_panel", None) or title, []).append(record)
        for title in sorted(panels, key=ORDER.index):
            with formatter.section(title):
                formatter.write_dl(panels[title])

    def get_short_help_str(self, limit: int = 0) -> str:
        """The first line of the help, whole."""
        return (self.help or "").strip().partition("\n")[0]


class Commands(TyperGroup):
    """The commands, in any case; UserError names the nearest one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not ctx.resilient_parsing:
            args = [find(args[0], self.commands, "no command"), *args[1:]]
        return super().resolve_command(ctx, args)

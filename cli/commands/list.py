"""`ddl list`: the members of a family, with their options."""

from __future__ import annotations

from typing import Annotated

import typer

from hvd_train import plugins
from hvd_train.names import find

OPTIMIZERS = "optimizers"
FAMILIES = [*plugins.FAMILIES, OPTIMIZERS]


def command(
    family: Annotated[
        str | None,
        typer.Argument(help=f"One of {', '.join(FAMILIES)}.", show_default=False, autocompletion=lambda: FAMILIES),
    ] = None,
) -> None:
    """List what can be chosen from, and the options of each; without a family, the families."""
    if family is None:
        print("\n".join(FAMILIES))
        return
    family = find(family, FAMILIES, "list: no family")
    for name, summary, options in _optimizers() if family == OPTIMIZERS else _members(plugins.FAMILIES[family]):
        print(f"{name:14} {summary}")
        for line in options:
            print(f"{'':14}   {line}")


def _members(package: str) -> list[tuple[str, str, list[str]]]:
    names = plugins.names(package)
    return [(name, plugins.summary(package, name), _options(package, name)) for name in names]


def _options(package: str, name: str) -> list[str]:
    fields = plugins.options(package, name).model_fields.items()
    return [
        f"{word}{'' if field.is_required() else f' = {field.default!r}'}: {field.description or ''}".rstrip(": ")
        for word, field in fields
    ]


def _optimizers() -> list[tuple[str, str, list[str]]]:
    from hvd_train import optimizers

    return [
        (name, f"torch.optim.{name}", [", ".join(optimizers.options(name))]) for name in sorted(optimizers.modules())
    ]

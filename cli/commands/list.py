"""`ddl list`: list the members of a family of plugins, with their options."""

from __future__ import annotations

from typing import Annotated

import typer

from hvd_train.config import plugins
from hvd_train.errors import UserError, install_remedy
from hvd_train.text.names import find

OPTIMIZERS, METRICS = "optimizers", "metrics"
FAMILIES = [*plugins.FAMILIES, OPTIMIZERS, METRICS]
WITHOUT_TARGET = {"engines", "launchers", "attacks", "samplers", "pruners", OPTIMIZERS}
"""Families whose members cannot be the user's own."""


def command(
    family: Annotated[
        str | None,
        typer.Argument(help=f"One of {', '.join(FAMILIES)}.", show_default=False, autocompletion=lambda: FAMILIES),
    ] = None,
) -> None:
    """List the members of a family of plugins and their options, or the families."""
    if family is None:
        print("\n".join(FAMILIES))
        return
    family = find(family, FAMILIES, "list: no family")
    of_libraries = {OPTIMIZERS: _optimizers, METRICS: _metrics}
    for name, summary, options in (
        of_libraries[family]() if family in of_libraries else _members(plugins.FAMILIES[family])
    ):
        print(f"{name:14} {summary}")
        for line in options:
            print(f"{'':14}   {line}")
    if family not in WITHOUT_TARGET:
        print("Your own: 'target: package.module:callable' in place of the name, with its options beside it.")


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
    from hvd_train.config import torch_optimizers

    return [
        (name, f"torch.optim.{name}", [", ".join(torch_optimizers.options(name))])
        for name in sorted(torch_optimizers.modules())
    ]


def _metrics() -> list[tuple[str, str, list[str]]]:
    from hvd_train.config import torchmetrics_source

    if not torchmetrics_source.is_installed():
        raise UserError(f"list metrics: torchmetrics is not installed; {install_remedy('metrics')}")
    return [
        (name, f"{torchmetrics_source.modules()[name]}.{name}", [", ".join(torchmetrics_source.options(name))])
        for name in sorted(torchmetrics_source.modules())
    ]

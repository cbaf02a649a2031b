"""Families of plugins: one package a family, one file a member.

The name of the file is the name of the member.

A member is a module with a docstring and a function `create`. The keyword-only parameters of
`create` are the options of the member in YAML. The parameters before them are what ddl passes.
Nothing is registered: a new file is a new member. Names are matched in any case, with - or _.
"""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hvd_train.config.source_code import parse
from hvd_train.config.targets import positional
from hvd_train.errors import UserError, nearest
from hvd_train.text.names import match

if TYPE_CHECKING:
    from pydantic import BaseModel

FAMILIES = {
    "engines": "hvd_train.comm.engines",
    "strategies": "hvd_train.sync.strategies",
    "compressors": "hvd_train.gradients.compressors",
    "models": "hvd_train.models.zoo",
    "data": "hvd_train.data.sources",
    "partitions": "hvd_train.data.partitions",
    "collates": "hvd_train.data.collates",
    "transforms": "hvd_train.data.transforms",
    "losses": "hvd_train.compute.losses",
    "agents": "hvd_train.agents.algorithms",
    "pruning": "hvd_train.slim.pruning",
    "attacks": "hvd_train.compute.attacks",
    "tokenizers": "hvd_train.data.tokenizers",
    "launchers": "cli.launch.launchers",
    "samplers": "cli.search.samplers",
    "pruners": "cli.search.pruners",
}


def names(package: str) -> list[str]:
    """Return the names of the members of a family, sorted, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules([str(_folder(package))]))


def load(package: str, name: str) -> ModuleType:
    """Import the member `name`, in any case, of `package`.

    Raise UserError, which lists the choices, if there is none.
    """
    known = names(package)
    member = match(name, known)
    if member is None:
        family = next((f for f, p in FAMILIES.items() if p == package), package)
        raise UserError(f"no '{name}' among the {family}{nearest(name, known)}")
    return importlib.import_module(f"{package}.{member}")


def create(package: str, name: str, *arguments: Any, **options: Any) -> Any:
    """Return what `create` of the member `name` returns.

    It takes the first of `arguments`, as many as it has positional parameters, and the options.
    """
    function = load(package, name).create
    return function(*arguments[: len(positional(function))], **options)


def summary(package: str, name: str) -> str:
    """Return the first line of the docstring of the member."""
    return (ast.get_docstring(source(package, name)) or "").partition("\n")[0]


def source(package: str, name: str) -> ast.Module:
    """Return the parsed module of the member `name`."""
    path = _folder(package) / name
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return parse(file.read_text(encoding="utf-8"), str(file))


@functools.cache
def options(package: str, name: str) -> type[BaseModel]:
    """Return a strict pydantic model of the options, read from the source of `create`."""
    from pydantic import ConfigDict, Field, create_model

    from hvd_train.config import options as vocabulary

    scope = {word: getattr(vocabulary, word) for word in vocabulary.__all__}
    fields: dict[str, Any] = {}
    for argument, default in _keywords(source(package, name)):
        assert argument.annotation is not None, f"{package}.{name}: option {argument.arg} has no type"
        annotation = _evaluate(argument.annotation, scope)
        text = next((m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, str)), None)
        value = ... if default is None else _evaluate(default, scope)
        fields[argument.arg] = (annotation, Field(value, description=text))
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **fields)


def _folder(package: str) -> Path:
    top, *rest = package.split(".")
    return Path(__file__).parents[2].joinpath(top, *rest)


def _keywords(module: ast.Module) -> list[tuple[ast.arg, ast.expr | None]]:
    function = next(n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == "create")
    return list(zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True))


def _evaluate(expression: ast.expr, scope: dict[str, Any]) -> Any:
    """Evaluate an annotation or a default of ddl's own source; never text of a user."""
    return eval(compile(ast.Expression(expression), "<create>", "eval"), dict(scope))

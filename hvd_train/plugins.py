"""Families of plugins: one package a family, one file a member, and the file's name is the public name.

A member is a module with a docstring and a function `create`. The keyword-only parameters of `create` are the
member's options in YAML; what comes before them is what the program itself passes in. Nothing is registered:
adding a file adds the member. Names are taken in any case.
"""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeGuard

from hvd_train.errors import UserError, nearest
from hvd_train.names import match

if TYPE_CHECKING:
    from pydantic import BaseModel

FAMILIES = {
    "engines": "hvd_train.comm",
    "strategies": "hvd_train.sync",
    "compressors": "hvd_train.compress",
    "models": "hvd_train.models",
    "data": "hvd_train.data",
    "partitions": "hvd_train.partition",
    "launchers": "cli.launchers",
}


def names(package: str) -> list[str]:
    """Public names of a family's members, sorted, without importing them."""
    found = (module.name for module in pkgutil.iter_modules([str(_folder(package))]))
    return sorted(name for name in found if name != "base" and not name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import the member `name`, in any case, of `package`; UserError lists the choices where there is none."""
    known = names(package)
    found = match(name, known)
    if found is None:
        family = next((f for f, p in FAMILIES.items() if p == package), package)
        raise UserError(f"no '{name}' among the {family}{nearest(name, known)}")
    return importlib.import_module(f"{package}.{found}")


def create(package: str, name: str, *args: Any, **options: Any) -> Any:
    """What the member's `create(*args, **options)` returns."""
    return load(package, name).create(*args, **options)


def summary(package: str, name: str) -> str:
    """First line of the member's docstring."""
    return (ast.get_docstring(_source(package, name)) or "").partition("\n")[0]


def asynchronous(strategy: str, options: Mapping[str, Any]) -> bool:
    """Whether its ranks go on without one that dies: its file says so in `ASYNCHRONOUS`, with True or the option that decides."""
    found = (n.value for n in _source(FAMILIES["strategies"], strategy).body if _assigns(n, "ASYNCHRONOUS"))
    says = next((ast.literal_eval(value) for value in found), False)
    return bool(options.get(says)) if isinstance(says, str) else bool(says)


@functools.cache
def options(package: str, name: str) -> type[BaseModel]:
    """A strict pydantic model of the member's options, read from the source of its `create`."""
    from pydantic import ConfigDict, Field, create_model

    from hvd_train import options as vocabulary

    scope = {word: getattr(vocabulary, word) for word in vocabulary.__all__}
    fields: dict[str, Any] = {}
    for argument, default in _keywords(_source(package, name)):
        assert argument.annotation is not None, f"{package}.{name}: option {argument.arg} has no type"
        annotation = _evaluate(argument.annotation, scope)
        text = next((m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, str)), None)
        value = ... if default is None else _evaluate(default, scope)
        fields[argument.arg] = (annotation, Field(value, description=text))
    return create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **fields)


def _folder(package: str) -> Path:
    top, *rest = package.split(".")
    return Path(__file__).parents[1].joinpath(top, *rest)


def _source(package: str, name: str) -> ast.Module:
    path = _folder(package) / name
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def _assigns(node: ast.stmt, name: str) -> TypeGuard[ast.Assign]:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)


def _keywords(module: ast.Module) -> list[tuple[ast.arg, ast.expr | None]]:
    function = next(n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == "create")
    return list(zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True))


def _evaluate(expression: ast.expr, scope: dict[str, Any]) -> Any:
    """The value of an annotation or default of our own source; text from users never comes here."""
    return eval(compile(ast.Expression(expression), "<create>", "eval"), dict(scope))

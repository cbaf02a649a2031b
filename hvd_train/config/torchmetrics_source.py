"""Read the metrics of torchmetrics and their options from its source, without importing it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

from pydantic import AfterValidator

from hvd_train.config.source_code import parse

_FILLED = ("task", "num_classes", "num_labels")
"""Options that ddl takes from the data if they are left out."""


class _Tuple:
    """A tuple for torchmetrics, which is a list in YAML."""

    def __class_getitem__(cls, items: Any) -> Any:
        return Annotated[list[Any], AfterValidator(tuple)]


_SCOPE: dict[str, Any] = {
    **{kind.__name__: kind for kind in (bool, int, float, str, list, dict)},
    "Any": Any,
    "Literal": Literal,
    "Optional": Optional,
    "Union": Union,
    "List": list,
    "Sequence": list,
    "tuple": _Tuple,
    "Tuple": _Tuple,
    "Tensor": list,
}
"""Types of YAML for the names in annotations of torchmetrics. Any other name stands for any value."""
_TYPE_NODES = (ast.Name, ast.Subscript, ast.Tuple, ast.List, ast.Constant, ast.Load, ast.BinOp, ast.BitOr)


def is_installed() -> bool:
    return find_spec("torchmetrics") is not None


@functools.cache
def modules() -> dict[str, str]:
    """Return, for the name of every metric class, the package that exports it; empty if not installed."""
    if not is_installed():
        return {}
    found: dict[str, str] = {}
    for file in sorted(_folder().glob("*/__init__.py")):
        package = file.parent.name
        if package not in {"functional", "utilities", "wrappers"}:
            found |= {name: f"torchmetrics.{package}" for name in _imports(_parse(file)) if name[0].isupper()}
    return found


@functools.cache
def options(name: str) -> dict[str, tuple[Any, Any]]:
    """Return the options of the metric `name` as fields for `pydantic.create_model`.

    An option that ddl fills in from the data has the default None.
    """
    init = _constructor(_file(_imports(_parse(_package_file(name)))[name]), name)
    if init is None:
        return {}
    given = [*init.args.args[1:], *init.args.kwonlyargs]
    positional = [None] * (len(given) - len(init.args.kwonlyargs) - len(init.args.defaults)) + list(init.args.defaults)
    defaults = [*positional, *init.args.kw_defaults]
    return {a.arg: _field(a, default) for a, default in zip(given, defaults, strict=True)}


def _field(argument: ast.arg, default: ast.expr | None) -> tuple[Any, Any]:
    kind = _type(argument.annotation)
    if argument.arg in _FILLED and default is None:
        return kind | None, None
    value = ... if default is None else _constant(default)
    return kind if value is not None else kind | None, value


def _constructor(file: Path, name: str) -> ast.FunctionDef | None:
    """Return `__new__` or `__init__` of the class `name` in `file`, or that of its first base."""
    tree = _parse(file)
    cls = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if cls is None:
        return None
    methods = {n.name: n for n in cls.body if isinstance(n, ast.FunctionDef)}
    own = methods.get("__new__") or methods.get("__init__")
    if own is not None:
        return own
    base = next((b.id for b in cls.bases if isinstance(b, ast.Name) and b.id != "Metric"), None)
    if base is None:
        return None
    module = _imports(tree).get(base)
    return _constructor(_file(module) if module else file, base)


def _imports(tree: ast.Module) -> dict[str, str]:
    """Return the module from which `tree` imports each name of torchmetrics."""
    return {alias.asname or alias.name: module for module, alias in _aliases(tree)}


def _aliases(tree: ast.Module) -> Iterator[tuple[str, ast.alias]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torchmetrics."):
            yield from ((str(node.module), alias) for alias in node.names)


def _package_file(name: str) -> Path:
    return _folder() / modules()[name].rpartition(".")[2] / "__init__.py"


def _file(module: str) -> Path:
    path = _folder().joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _parse(file: Path) -> ast.Module:
    return parse(file.read_text(encoding="utf-8"))


def _folder() -> Path:
    spec = find_spec("torchmetrics")
    assert spec is not None, "torchmetrics is not installed"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def _constant(default: ast.expr) -> Any:
    try:
        return ast.literal_eval(default)
    except ValueError:
        return None


def _type(annotation: ast.expr | None) -> Any:
    """Return the type of YAML for `annotation`; Any if it names other types."""
    nodes = list(ast.walk(annotation)) if annotation is not None else []
    is_plain = all(isinstance(n, _TYPE_NODES) and (not isinstance(n, ast.Name) or n.id in _SCOPE) for n in nodes)
    if annotation is None or not is_plain:
        return Any
    return eval(compile(ast.Expression(annotation), "<torchmetrics>", "eval"), {"__builtins__": {}}, dict(_SCOPE))

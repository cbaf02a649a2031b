"""Read the parameters of a target from its source, so that `ddl validate` can check options."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from hvd_train.config import options as vocabulary
from hvd_train.config import targets

_BUILTINS = {kind.__name__: kind for kind in (bool, int, float, str, list, dict)}
_SAFE = (ast.Load, ast.BitOr, ast.Constant, ast.Subscript, ast.Tuple, ast.List, ast.UnaryOp, ast.USub, ast.keyword)


@dataclass(frozen=True)
class Parameter:
    """A parameter that an option can set.

    `check` raises pydantic's ValidationError for a value of another type.
    """

    required: bool
    default: Any
    check: Callable[[Any], Any]


def read(text: str, count_passed: Callable[[list[str]], int], called_with: int = 0) -> dict[str, Parameter] | None:
    """Return the parameters of the target `text` by name, without the leading ones that ddl passes.

    `count_passed` returns the number of leading parameters, given the names of all positional ones.
    If `called_with` is not 0, a function is called with so many arguments later, and a class
    with none.
    Return None if the source does not show the parameters: no Python source, a decorator,
    `**kwargs`, an inherited constructor.
    """
    module = targets.source(text)
    arguments = None if module is None else _arguments(module, text.partition(":")[2])
    if module is None or arguments is None or arguments.kwarg is not None:
        return None
    scope = _scope(module)
    positional = [argument.arg for argument in _positional(arguments)]
    passed = count_passed(positional)
    if called_with:
        passed = called_with if _is_function(module, text.partition(":")[2]) else 0
    skipped = min(len(positional), max(len(arguments.posonlyargs), passed))
    return {a.arg: _parameter(a, default, scope) for a, default in [*_pairs(arguments)][skipped:]}


def _arguments(module: ast.Module, name: str) -> ast.arguments | None:
    """Return the parameters of the function or class `name`, of a class without `self`."""
    bound = [node for node in module.body if name in _names(node)]
    if len(bound) != 1:
        return None
    (node,) = bound
    if isinstance(node, ast.ClassDef) and not node.decorator_list and not node.keywords:
        methods = [n for n in node.body if _name(n) in {"__init__", "__new__"}]
        if len(methods) != 1 or not isinstance(methods[0], ast.FunctionDef) or methods[0].decorator_list:
            return None
        arguments = copy.deepcopy(methods[0].args)  # the tree is shared
        (arguments.posonlyargs or arguments.args)[:1] = []
        return arguments
    return node.args if isinstance(node, ast.FunctionDef) and not node.decorator_list else None


def _is_function(module: ast.Module, name: str) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in module.body)


def _name(node: ast.stmt) -> str | None:
    return getattr(node, "name", None)


def _names(node: ast.stmt) -> set[str]:
    """Return the names that a statement of a module may bind."""
    if _name(node):
        return {str(_name(node))}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    inner = [*ast.walk(node)]
    variables = {n.id for n in inner if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return variables | {n.name for n in inner if isinstance(n, ast.FunctionDef | ast.ClassDef)}


def _positional(arguments: ast.arguments) -> list[ast.arg]:
    return [*arguments.posonlyargs, *arguments.args]


def _pairs(arguments: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Yield each parameter with its default, positional ones first."""
    from_the_end = zip_longest(reversed(_positional(arguments)), reversed(arguments.defaults))
    yield from reversed([*from_the_end])
    yield from zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)


def _parameter(argument: ast.arg, default: ast.expr | None, scope: Mapping[str, Any]) -> Parameter:
    try:
        value = None if default is None else ast.literal_eval(default)
    except ValueError:
        value = None
    return Parameter(default is None, value, _adapter(argument.annotation, scope).validate_python)


def _adapter(annotation: ast.expr | None, scope: Mapping[str, Any]) -> TypeAdapter[Any]:
    """Return a check of the type `annotation` if it consists of names of `scope`, else of Any."""
    if annotation is not None and all(_is_safe(node, scope) for node in ast.walk(annotation)):
        try:
            kind = eval(compile(ast.Expression(annotation), "<annotation>", "eval"), {"__builtins__": {}}, dict(scope))
            return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))
        except Exception:  # such as int[3]: an error of the user's module, which Python itself may not evaluate
            pass
    return TypeAdapter(Any)


def _is_safe(node: ast.AST, scope: Mapping[str, Any]) -> bool:
    """Return True if `node` can only make a type of `scope`: it calls nothing but `Field`."""
    if isinstance(node, ast.Name):
        return node.id in scope
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and scope.get(node.func.id) is vocabulary.Field
    return isinstance(node, _SAFE) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr))


def _scope(module: ast.Module) -> dict[str, Any]:
    """Return the names for annotations: built-in types, and imports from `config.options`."""
    imported = (n for n in module.body if isinstance(n, ast.ImportFrom) and n.module == vocabulary.__name__)
    names = {alias.asname or alias.name: alias.name for node in imported for alias in node.names}
    ours = {name: getattr(vocabulary, of) for name, of in names.items() if of in vocabulary.__all__}
    return {**_BUILTINS, **ours}

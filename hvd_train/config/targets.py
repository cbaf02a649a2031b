"""Callables of the user's own code, named as `package.module:callable`."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import decode_source
from pathlib import Path
from types import ModuleType
from typing import Any

from hvd_train.config.source_code import parse
from hvd_train.errors import UserError, nearest


def check(text: str) -> None:
    """Raise UserError unless `text` reads `package.module:callable` and the module exists.

    Import nothing.
    """
    module, _, name = text.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise UserError(f"target '{text}': expected 'package.module:callable', a colon between module and name")
    problem = None if module in sys.modules else missing(module, [os.getcwd(), *sys.path])
    if problem is not None:
        raise UserError(f"target '{text}': {problem}")


def source(text: str) -> ast.Module | None:
    """Return the parsed module of the target `text`, without importing it.

    Return None if it has no valid Python source.
    """
    try:
        check(text)
        module = text.partition(":")[0]
        spec = sys.modules[module].__spec__ if module in sys.modules else _find(module, [os.getcwd(), *sys.path])
        if not isinstance(spec, ModuleSpec) or not (spec.origin or "").endswith(".py"):
            return None
        return parse(decode_source(Path(str(spec.origin)).read_bytes()))
    except (UserError, OSError, SyntaxError, ValueError):
        return None


def resolve(text: str) -> Callable[..., Any]:
    """Import the module of the target `text` and return the callable.

    Modules in the current directory count.

    Raise UserError for wrong syntax, an unknown module, a module that raises, an unknown name, and
    a name that is not callable.
    """
    check(text)
    module, name = _import(text), text.partition(":")[2]
    if not hasattr(module, name):
        public = [word for word in dir(module) if not word.startswith("_")]
        raise UserError(f"target '{text}': no '{name}' in module '{module.__name__}'{nearest(name, public)}")
    value = getattr(module, name)
    if not callable(value):
        raise UserError(f"target '{text}': '{name}' is of type {type(value).__name__}, expected a callable")
    return value  # type: ignore[no-any-return]


def positional(function: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters of `function` that can be given by position."""
    with contextlib.suppress(ValueError):  # some callables written in C have no signature
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [name for name, p in inspect.signature(function).parameters.items() if p.kind in kinds]
    return []


def call(text: str, function: Callable[..., Any], arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Return `function(*arguments, **options)`.

    Raise UserError, which names the target `text`, if they do not fit.
    """
    with contextlib.suppress(ValueError):
        signature = inspect.signature(function)
        try:
            signature.bind(*arguments, **options)
        except TypeError as error:
            raise UserError(f"target '{text}': {error}; its parameters are {signature}") from None
    return function(*arguments, **options)


def missing(module: str, path: Sequence[str]) -> str | None:
    """Return which part of the dotted name `module` is not found on `path`, or None.

    Import nothing.
    """
    found = _find(module, path)
    return found if isinstance(found, str) else None


def _find(module: str, path: Sequence[str]) -> ModuleSpec | str:
    """Return the spec of `module`, or which part of its dotted name is not found on `path`.

    Import nothing.
    """
    parts, spec = module.split("."), None
    for depth, part in enumerate(parts):
        spec = PathFinder.find_spec(part, path) or (_found_by_hook(part) if depth == 0 else None)
        if spec is None:
            known = _modules(part, path) if depth == 0 else [m.name for m in pkgutil.iter_modules(path)]
            where = f"in package '{'.'.join(parts[:depth])}'" if depth else f"in {path[0]} or installed"
            return f"no module '{part}' {where}{nearest(part, known)}"
        path = list(spec.submodule_search_locations or [])
    assert spec is not None
    return spec


def _found_by_hook(name: str) -> ModuleSpec | None:
    """Return the spec of a module that is not on the path: built in, or an editable install."""
    return next(filter(None, (finder.find_spec(name, None) for finder in sys.meta_path)), None)


def _modules(name: str, path: Sequence[str]) -> list[str]:
    """Return the modules of the first folder of `path`, and modules spelled like `name` in others."""
    local = [module.name for module in pkgutil.iter_modules(path[:1])]
    return [*local, *difflib.get_close_matches(name, {m.name for m in pkgutil.iter_modules(path)} - {*local})]


def _import(text: str) -> ModuleType:
    name = text.partition(":")[0]
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UserError(f"target '{text}': importing '{name}' failed: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """Return type, text and place of the first error in the chain that led to `error`."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and before.__traceback__ is not None:
        return _cause(before)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"

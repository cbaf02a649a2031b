"""Objects of the user's own code, named as `package.module:callable`."""

from __future__ import annotations

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
from types import ModuleType
from typing import Any

from hvd_train.errors import UserError, nearest


def check(text: str) -> None:
    """UserError unless `text` reads `package.module:callable` and that module is found; imports nothing."""
    module, _, name = text.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise UserError(f"target '{text}': expected 'package.module:callable', a colon between module and name")
    if module not in sys.modules:
        _find(text, module.split("."))


def resolve(text: str) -> Callable[..., Any]:
    """The callable that `text` names, its module imported; modules in the current directory count.

    UserError says what is wrong: the syntax, the module, its import, the name, or what it names.
    """
    check(text)
    module, name = _import(text), text.partition(":")[2]
    if not hasattr(module, name):
        public = [word for word in dir(module) if not word.startswith("_")]
        raise UserError(f"target '{text}': no '{name}' in module '{module.__name__}'{nearest(name, public)}")
    found = getattr(module, name)
    if not callable(found):
        raise UserError(f"target '{text}': '{name}' is of type {type(found).__name__}, expected a callable")
    return found  # type: ignore[no-any-return]


def call(text: str, args: Mapping[str, Any]) -> Any:
    """What the callable that `text` names returns for the keywords `args`; UserError if they do not fit."""
    function = resolve(text)
    with contextlib.suppress(ValueError):  # some callables written in C have no signature
        signature = inspect.signature(function)
        try:
            signature.bind(**args)
        except TypeError as error:
            raise UserError(f"target '{text}': {error}; its parameters are {signature}") from None
    return function(**args)


def _find(text: str, parts: Sequence[str]) -> None:
    path = [os.getcwd(), *sys.path]
    for depth, part in enumerate(parts):
        spec = PathFinder.find_spec(part, path) or (_hooked(part) if depth == 0 else None)
        if spec is None:
            known = _modules(part, path) if depth == 0 else [m.name for m in pkgutil.iter_modules(path)]
            where = f"in package '{'.'.join(parts[:depth])}'" if depth else f"in {path[0]} or installed"
            raise UserError(f"target '{text}': no module '{part}' {where}{nearest(part, known)}")
        path = list(spec.submodule_search_locations or [])


def _hooked(name: str) -> ModuleSpec | None:
    """A top-level module that is not on the path: built into Python, or installed in editable mode."""
    return next(filter(None, (finder.find_spec(name, None) for finder in sys.meta_path)), None)


def _modules(name: str, path: Sequence[str]) -> list[str]:
    """The modules of the path's first folder, and those of the other folders that are spelled like `name`."""
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
    """Type, text and place of the error that started a chain of errors."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and before.__traceback__ is not None:
        return _cause(before)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"

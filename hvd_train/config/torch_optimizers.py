"""Read the optimizers of `torch.optim` and their options from the source of torch."""

from __future__ import annotations

import ast
import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hvd_train.config.source_code import parse

NOT_OPTIONS = {"self", "params", "named_params"}


@functools.cache
def modules() -> dict[str, str]:
    """Return, for the name of every optimizer class, its module in `torch/optim`."""
    tree = parse((_folder() / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.name: node.module.rpartition(".")[2]
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.name[0].isupper() and alias.name != "Optimizer"
    }


@functools.cache
def options(name: str) -> dict[str, tuple[Any, Any]]:
    """Return type and default of each parameter of the class `name`.

    The type is that of the default.
    """
    tree = parse((_folder() / f"{modules()[name]}.py").read_text(encoding="utf-8"))
    cls = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    init = next(n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    given = [*init.args.args, *init.args.kwonlyargs]
    positional = [None] * (len(init.args.args) - len(init.args.defaults)) + list(init.args.defaults)
    defaults = [*positional, *init.args.kw_defaults]
    pairs = ((a.arg, _constant(d)) for a, d in zip(given, defaults, strict=True) if a.arg not in NOT_OPTIONS)
    return {key: (_type(default), default) for key, default in pairs}


def _folder() -> Path:
    spec = find_spec("torch")
    assert spec is not None, "torch is not installed"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "optim"


def _constant(default: ast.expr | None) -> Any:
    try:
        value = None if default is None else ast.literal_eval(default)
    except ValueError:
        return None
    return list(value) if isinstance(value, tuple) else value


def _type(default: Any) -> Any:
    if isinstance(default, bool):
        return bool
    if isinstance(default, int | float):
        return float
    return list[float] if isinstance(default, list) else Any

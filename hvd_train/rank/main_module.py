"""Run a file or a module as the main program, as `python FILE` and `python -m MODULE` do."""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType


def run(arguments: Sequence[str]) -> None:
    """Run `FILE [ARG ...]` or `-m MODULE [ARG ...]` and let its exceptions pass.

    Unlike with `runpy`, the module remains `__main__` until the process ends, as pickles, worker
    processes and threads need it.
    """
    if arguments[0] == "-m":
        _run_module(arguments[1], arguments[2:])
    else:
        _run_file(arguments[0], arguments[1:])


def _run_file(file: str, rest: Sequence[str]) -> None:
    sys.argv[:] = [file, *rest]
    _put_first(os.path.dirname(os.path.realpath(file)))
    with io.open_code(file) as source:
        text = source.read()
    module = _main(__file__=file, __cached__=None, __loader__=SourceFileLoader("__main__", file))
    exec(compile(text, file, "exec", dont_inherit=True), module.__dict__)


def _run_module(name: str, rest: Sequence[str]) -> None:
    sys.argv[:] = ["-m", *rest]
    _put_first(os.getcwd())
    spec = _spec(name)
    code: CodeType | None = spec.loader.get_code(spec.name)  # type: ignore[union-attr]
    if code is None:
        raise ImportError(f"No code object available for {spec.name}")
    sys.argv[0] = str(spec.origin)
    module = _main(
        __file__=spec.origin,
        __cached__=spec.cached,
        __loader__=spec.loader,
        __package__=spec.parent,
        __spec__=spec,
    )
    exec(code, module.__dict__)


def _spec(name: str) -> ModuleSpec:
    """Return the spec of the module, or of `__main__` in the package.

    ImportError if there is none.
    """
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError(f"No module named {name}", name=name)
    if spec.submodule_search_locations is None:
        return spec
    inner = importlib.util.find_spec(f"{name}.__main__")
    if inner is None:
        raise ImportError(f"No module named {name}.__main__; '{name}' is a package that cannot be run", name=name)
    return inner


def _main(**attributes: object) -> ModuleType:
    module = ModuleType("__main__")
    module.__dict__.update(attributes, __builtins__=builtins)
    sys.modules["__main__"] = module
    return module


def _put_first(folder: str) -> None:
    """Put `folder` first on the path. `hvd_train.rank.internal` has removed its own folder."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, folder)

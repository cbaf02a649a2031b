"""Find the files and the optional packages that a data source needs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hvd_train.config.fetched import place
from hvd_train.errors import UserError, install_remedy, nearest


def find_file(path: str, option: str) -> Path:
    """Return the file at `path`, a path of the YAML file.

    Raise UserError, which names `option`, if there is none.
    """
    file = place(path)
    if not file.is_file():
        folder = file.parent
        known = [f.name for f in folder.iterdir() if f.is_file()] if folder.is_dir() else []
        raise UserError(f"data.{option}: no file '{path}'{nearest(file.name, known)}")
    return file


def test_files(paths: str | Mapping[str, str] | None) -> dict[str, Path]:
    """Return the files of `data.test_path` by the names of their splits; one path is the split `test`."""
    named = {"test": paths} if isinstance(paths, str) else paths or {}
    return {name: find_file(path, "test_path") for name, path in named.items()}


def test_pairs(
    inputs: str | Mapping[str, str] | None, targets: str | Mapping[str, str] | None, options: tuple[str, str]
) -> dict[str, tuple[str, str]]:
    """Return the paths of test inputs and targets by the names of their splits.

    Raise UserError, which names the `options`, if some split has only one of them.
    """
    named = [{"test": paths} if isinstance(paths, str) else paths or {} for paths in (inputs, targets)]
    if named[0].keys() != named[1].keys() or isinstance(inputs, str) != isinstance(targets, str):
        raise UserError(f"data.{options[0]} and data.{options[1]}: expected both or neither, with the same names")
    return {name: (path, named[1][name]) for name, path in named[0].items()}


def import_extra(module: str, extra: str = "data") -> Any:
    """Import a module of the extra `extra` of ddl.

    Raise UserError, which says how to install it, if it is missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(str(error.name), extra) from error


def packaged_file(package: str, name: str) -> Path:
    """Return the path of a file in a package of the extra `data`, without importing it.

    Importing scikit-learn would take a second at the start of every rank.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package)
    return Path(spec.submodule_search_locations[0]) / name


def _missing(package: str, extra: str = "data") -> UserError:
    return UserError(f"this data source needs {package}, which is not installed; {install_remedy(extra)}")

"""The contract of a format of exports.

A format is a file in `hvd_train/trained/exporting/formats` whose `create()` returns a `Format`.
It writes a model and reads it back. Packages that it needs are imported in its methods; a missing
one is a UserError that names the extra.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Protocol

from torch import Tensor

from hvd_train.config import plugins
from hvd_train.errors import UserError, install_remedy
from hvd_train.trained.exporting.program import Shapes, Source

PACKAGE = "hvd_train.trained.exporting.formats"

Runner = Callable[[tuple[Tensor, ...]], list[Tensor]]
"""Computes the outputs of a model that was read back, for inputs in the order of its names."""


class Format(Protocol):
    """Writes a model as files, and reads them."""

    quantized_by: str
    """The backend of its quantizers: onnx for those of files, and otherwise those of modules."""
    file: str
    """The name of the file that it writes."""

    def write(self, source: Source, folder: Path) -> Shapes:
        """Write the model to `folder`, and return the shapes of the inputs.

        Raise UserError for a model that the format cannot hold.
        """

    def read(self, folder: Path, source: Source, threads: int) -> Runner:
        """Read what `write` wrote. The result computes with `threads` threads."""

    def loading(self, source: Source, *, quantized: bool) -> str:
        """Return Python code that loads the file and calls it, without ddl where that is possible."""


def names() -> list[str]:
    """Return the choices of `--to`."""
    return plugins.names(PACKAGE)


def create(name: str) -> Format:
    """Return the format `name`; UserError, which lists the choices, if there is none."""
    made: Format = plugins.create(PACKAGE, name)
    return made


def package(name: str, to: str, extra: str) -> ModuleType:
    """Import the package `name` for the format `to`; UserError, which names the extra, if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or name
        raise UserError(f"--to {to}: {missing} is not installed; {install_remedy(extra)}") from error

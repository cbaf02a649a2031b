"""Import transformers, which stays silent."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from hvd_train.errors import UserError, install_remedy


def library() -> ModuleType:
    """Return the module `transformers`; UserError, which says how to install it, if it is missing.

    Its classes import their own modules when they are used. Importing all of them takes seconds.
    """
    try:
        with hidden("torchao"):
            transformers = importlib.import_module("transformers")
            importlib.import_module("transformers.modeling_utils")
    except ModuleNotFoundError as error:
        raise UserError(
            f"model 'huggingface' needs {error.name}, which is not installed; {install_remedy('huggingface')}"
        ) from error
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    return transformers


def masking() -> ModuleType:
    """Return the module of the library that makes masks of attention."""
    return importlib.import_module("transformers.masking_utils")


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Let `package` look as if it were not installed.

    transformers imports torchao for quantised weights, which ddl does not read. That takes half a
    second on every rank, and prints warnings.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


def reason(error: Exception) -> str:
    """Return what the library says in one line."""
    lines = (line.strip() for line in str(error).splitlines())
    text = " ".join(line for line in lines if line)
    return text[:300] or type(error).__name__

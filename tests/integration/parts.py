"""The requirements of tests.

A test without its requirements is skipped on a user's machine and fails in CI.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from cli.launch.flavor import find_mpirun
from hvd_train.errors import UserError


def needs(part: str) -> None:
    """Require that `part` is installed: an engine, or 'mpirun'."""
    require(_missing(part))


def require(missing: str | None) -> None:
    """Skip the test, or fail in CI, if `missing` is not empty."""
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI installs everything, but: {missing}")
    if missing:
        pytest.skip(missing)


def _missing(part: str) -> str | None:
    if part == "horovod" and find_spec("horovod") is None:
        return "Horovod is not installed: scripts/install-horovod builds it"
    try:
        find_mpirun()
    except UserError as error:
        return str(error)
    return None

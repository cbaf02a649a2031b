"""Check the requirements of commands that need an extra."""

from __future__ import annotations

from importlib.util import find_spec

from hvd_train.errors import UserError, install_remedy


def check(command: str, extra: str, *packages: str) -> None:
    """Raise UserError, which says how to install `extra`, if a package that `command` needs is missing."""
    missing = next((name for name in packages if find_spec(name) is None), None)
    if missing is not None:
        raise UserError(f"{command} needs {missing}, which is not installed; {install_remedy(extra)}")

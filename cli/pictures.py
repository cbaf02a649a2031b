"""What commands that draw need."""

from __future__ import annotations

from importlib.util import find_spec

from hvd_train.errors import UserError


def check(command: str) -> None:
    """UserError where `command`, which draws, cannot."""
    if find_spec("matplotlib") is None:
        raise UserError(f"{command} draws with matplotlib, which is not installed: pip install 'ddl[bench]'")

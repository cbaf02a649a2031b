"""Check the requirements of commands that draw."""

from __future__ import annotations

from cli.output import packages


def check(command: str) -> None:
    """Raise UserError if matplotlib, with which `command` draws, is missing."""
    packages.check(command, "bench", "matplotlib")

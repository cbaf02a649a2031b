"""The question to the other hosts before a command starts ranks there."""

from __future__ import annotations

import sys
from pathlib import Path

from cli.preflight.check import check
from cli.preflight.needs import needs
from cli.reach import Reach
from cli.target import Target


def look(found: Reach, target: Target) -> None:
    """Ask the other hosts whether ranks of `target` can run there: warnings are told, errors are a UserError."""
    if not found.others:
        return
    for problem in check(
        found.others, needs(target.program, Path.cwd(), target.environment), found.network, client=found.client
    ):
        print(f"ddl: warning: {problem.host}: {problem.what}; {problem.remedy}", file=sys.stderr)

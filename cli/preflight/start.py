"""The question to the other hosts before a command starts ranks there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cli.preflight.check import check
from cli.preflight.needs import needs
from cli.reach import Reach


def look(found: Reach, program: Sequence[str]) -> None:
    """Ask the other hosts whether ranks with the argv `program` can run there: warnings are told, errors are a UserError."""
    if not found.others:
        return
    for problem in check(found.others, needs(program, Path.cwd()), found.network, client=found.client):
        print(f"ddl: warning: {problem.host}: {problem.what}; {problem.remedy}", file=sys.stderr)

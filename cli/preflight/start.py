"""The question to the other hosts before a command starts ranks there."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cli.preflight.check import check
from cli.preflight.needs import needs
from cli.reach import Reach


def look(found: Reach, program: Sequence[str], environment: Mapping[str, str]) -> None:
    """Ask the other hosts whether ranks with the argv `program` can run there: warnings are told, errors are a UserError.

    `environment` has variables that ranks get besides those of this shell.
    """
    if not found.others:
        return
    wanted = needs(program, Path.cwd(), environment)
    for problem in check(found.others, wanted, found.network, client=found.client):
        print(f"ddl: warning: {problem.host}: {problem.what}; {problem.remedy}", file=sys.stderr)

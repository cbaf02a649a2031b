"""The preflight check that a command makes before it starts ranks."""

from __future__ import annotations

from pathlib import Path

from cli.launch.target import Target
from cli.output.streams import say
from cli.remote.preflight.check import check
from cli.remote.preflight.needs import needs
from cli.remote.reach import Reach


def require_ready(reach: Reach, target: Target) -> None:
    """Ask all other hosts at once whether they can run ranks of `target`.

    Print warnings on stderr. Raise UserError with a table if a host cannot run them.
    """
    if not reach.others:
        return
    for problem in check(reach.others, needs(target, Path.cwd()), reach.network, client=reach.client):
        say(f"warning: {problem.host}: {problem.what}; {problem.remedy}")

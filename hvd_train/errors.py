"""What can go wrong, and the exit code that says so."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `ddl` and of every rank; `docs/exit-codes.md` lists them."""

    OK = 0
    FAILURE = 1
    BAD_INPUT = 2
    DIVERGED = 3
    NODE_LOST = 69
    STOPPED = 75
    TIMEOUT = 124


class UserError(Exception):
    """Input that cannot be used; its text is the whole message: what, where, expected, nearest choice."""

    exit_code = ExitCode.BAD_INPUT


class Diverged(Exception):
    """A loss that is no longer a number."""

    exit_code = ExitCode.DIVERGED


class Stopped(Exception):
    """A signal asked the job to stop; a checkpoint of the last finished step is on disk."""

    exit_code = ExitCode.STOPPED


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of an error message: the choice most like `word`, and the first choices where that helps."""
    known = sorted(choices)
    close = difflib.get_close_matches(word.lower(), [c.lower() for c in known], n=1, cutoff=0.6)
    hint = next((f"; did you mean '{c}'?" for c in known if close and c.lower() == close[0]), "")
    if not known or (hint and len(known) > 20):
        return hint
    return f"{hint} (choices: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''})"

"""Errors and their exit codes, and the endings of error messages."""

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
    """Bad input.

    The text is the whole message: what happened, where, what was expected, the nearest choice.
    """

    exit_code = ExitCode.BAD_INPUT


class Diverged(Exception):
    """The loss is not a finite number."""

    exit_code = ExitCode.DIVERGED


class Stopped(Exception):
    """A signal stopped the job. A checkpoint of the last completed step is on disk."""

    exit_code = ExitCode.STOPPED


def install_remedy(extra: str = "") -> str:
    """Return the remedy for a missing package: how to install ddl with `extra` from a checkout."""
    what = f"'.[{extra}]'" if extra else "."
    return f"in a checkout of ddl, run pip install -e {what}"


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return the end of an error message: the choice nearest to `word`, and the first choices."""
    known = sorted(choices)
    close = difflib.get_close_matches(word.lower(), [c.lower() for c in known], n=1, cutoff=0.6)
    hint = next((f"; did you mean '{c}'?" for c in known if close and c.lower() == close[0]), "")
    if not known or (hint and len(known) > 20):
        return hint
    return f"{hint} (choices: {', '.join(known[:20])}{', ...' if len(known) > 20 else ''})"

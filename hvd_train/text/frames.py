"""The place of a thread as text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType


def where(frame: FrameType | None) -> str:
    """Return the function and line of `frame`, and the line of the user's program that called it."""
    inner = _first(frame, lambda file: not file.startswith("<"))
    own = _first(inner, _is_users)
    places = dict.fromkeys(f for f in (inner, own) if f is not None)
    return ", called from ".join(f"{f.f_code.co_name} ({_short(f.f_code.co_filename)}:{f.f_lineno})" for f in places)


def _first(frame: FrameType | None, fits: Callable[[str], bool]) -> FrameType | None:
    """Return the innermost call, from `frame` outwards, whose file fits."""
    while frame is not None and not fits(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _is_users(file: str) -> bool:
    return not file.startswith(("<", sys.prefix, sys.base_prefix, _PACKAGE))


_PACKAGE = str(Path(__file__).parents[1])


def _short(file: str) -> str:
    return "/".join(Path(file).parts[-2:])

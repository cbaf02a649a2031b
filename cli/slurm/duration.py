"""Convert durations as users write them (90, 1:30:00, 1-12, 1h30m, 2 days) for SLURM."""

from __future__ import annotations

import re
from typing import Any

SLURM = r"\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2}"
_PART = r"(\d+(?:\.\d+)?) *([a-z]+)"
UNITS = {
    **dict.fromkeys(("d", "day", "days"), 86400),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
}


def for_slurm(value: Any) -> Any:
    """Return `value` in the form of SLURM: 1h30m becomes 01:30:00.

    ValueError if a text is not a duration.

    A `value` that is not a string is returned as it is.
    """
    if not isinstance(value, str) or re.fullmatch(SLURM, value):
        return value
    parts = re.findall(_PART, value)
    sizes = [UNITS.get(unit, 0) for _, unit in parts]
    whole = re.fullmatch(rf"({_PART} *)+", value)
    if not whole or 0 in sizes or sizes != sorted(set(sizes), reverse=True):
        raise ValueError(f"expected minutes, H:M:S, D-H, or units such as 1h30m and 2d, got {value!r}")
    seconds = round(sum(float(number) * size for (number, _), size in zip(parts, sizes, strict=True)))
    if not seconds:
        raise ValueError(f"expected a duration above zero, got {value!r}")
    return _clock(seconds)


def _clock(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock

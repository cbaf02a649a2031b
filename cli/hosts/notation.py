"""Parse SLURM's notations: names `n[1-3,7]`, counts on nodes `4(x2),3`, times `1-12:30`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

MOST = 10_000
"""Largest number of tasks of an array; each task has a run folder."""

_PART = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_ARRAY = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?")
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def expand(text: str) -> tuple[str, ...]:
    """Return the names of `login,r[1-2]n[01-12]`, in order."""
    return tuple(name for part in _PART.findall(text) for name in _names(part))


def counts(text: str) -> tuple[int, ...]:
    """Return a number per node: 4, 4 and 3 for `4(x2),3`."""
    matches = (_COUNT.fullmatch(part) for part in text.split(","))
    return tuple(int(match[1]) for match in matches if match for _ in range(int(match[2] or 1)))


def numbers(text: str) -> Iterator[str]:
    """Yield the numbers of `1,4-8:2`, with the leading zeros of the first number of a range."""
    for item in text.split(","):
        span, _, step = item.partition(":")
        first, _, last = span.partition("-")
        for number in range(int(first), int(last or first) + 1, int(step or 1)):
            yield f"{number:0{len(first)}}"


def tasks(text: str) -> tuple[str, ...]:
    """Return the task numbers of an array such as `01-03,7%2` as SLURM assigns them: 1, 2, 3 and 7.

    ValueError says what is wrong with an invalid array.
    """
    if not _ARRAY.fullmatch(text):
        raise ValueError("is not an array")
    spans = [_range(*re.findall(r"\d+", item)) for item in text.partition("%")[0].split(",")]
    if not all(spans):
        raise ValueError("has an empty range")
    if sum(map(len, spans)) > MOST:
        raise ValueError(f"has more than {MOST:,} tasks")
    return tuple(map(str, sorted({number for span in spans for number in span})))


def _range(first: str, last: str | None = None, step: str = "1") -> range:
    return range(int(first), int(last or first) + 1, int(step)) if int(step) else range(0)


def seconds(time: str | int) -> int:
    """Return the seconds of a time: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = str(time).rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    weights = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(w * p for w, p in zip(weights, parts, strict=False))


def _names(part: str) -> Iterator[str]:
    pieces = _BRACKETS.split(part)
    choices = [list(numbers(piece)) if place % 2 else [piece] for place, piece in enumerate(pieces)]
    return map("".join, product(*choices))

"""SLURM's notation: `n[1-3,7]` for names, `4(x2),3` for a count on each of them, `1-12:30` for a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

MOST = 10_000
"""Tasks of an array, each of which has a run folder."""

_PART = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_ARRAY = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?")
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def expand(text: str) -> tuple[str, ...]:
    """Names of `login,r[1-2]n[01-12]`, in order."""
    return tuple(name for part in _PART.findall(text) for name in _names(part))


def counts(text: str) -> tuple[int, ...]:
    """A number for each node, as 4, 4 and 3 for `4(x2),3`."""
    found = (_COUNT.fullmatch(part) for part in text.split(","))
    return tuple(int(match[1]) for match in found if match for _ in range(int(match[2] or 1)))


def numbers(text: str) -> Iterator[str]:
    """The items of `1,4-8:2`, each as wide as it is written."""
    for item in text.split(","):
        span, _, step = item.partition(":")
        first, _, last = span.partition("-")
        for number in range(int(first), int(last or first) + 1, int(step or 1)):
            yield f"{number:0{len(first)}}"


def tasks(text: str) -> tuple[str, ...]:
    """Numbers of the tasks of an array such as `01-03,7%2`, as SLURM gives them: 1, 2, 3 and 7. ValueError for others."""
    if not _ARRAY.fullmatch(text):
        raise ValueError("is no array")
    spans = [_range(*re.findall(r"\d+", item)) for item in text.partition("%")[0].split(",")]
    if not all(spans):
        raise ValueError("has an empty range")
    if sum(map(len, spans)) > MOST:
        raise ValueError(f"has more than {MOST:,} tasks")
    return tuple(map(str, sorted({number for span in spans for number in span})))


def _range(first: str, last: str | None = None, step: str = "1") -> range:
    return range(int(first), int(last or first) + 1, int(step)) if int(step) else range(0)


def seconds(time: str | int) -> int:
    """A time: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = str(time).rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    weights = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(w * p for w, p in zip(weights, parts, strict=False))


def _names(part: str) -> Iterator[str]:
    pieces = _BRACKETS.split(part)
    choices = [list(numbers(piece)) if place % 2 else [piece] for place, piece in enumerate(pieces)]
    return map("".join, product(*choices))

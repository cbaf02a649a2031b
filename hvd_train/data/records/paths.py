"""The files that patterns name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path

from hvd_train.config.fetched import place
from hvd_train.data.files import find_file
from hvd_train.errors import UserError

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def find_files(patterns: str | Sequence[str], option: str) -> list[Path]:
    """Return the files that `patterns` name, in their order; those of one pattern are sorted.

    A pattern may have alternatives `{a,b}`, a range `{000..099}`, and `*`, `?` and `[...]`. Raise
    UserError, which names `option`, for a file that does not exist and for a pattern without files.
    """
    return [
        file for pattern in ([patterns] if isinstance(patterns, str) else patterns) for file in _files(pattern, option)
    ]


def braces(pattern: str) -> Iterator[str]:
    """Yield the texts that a pattern with `{a,b}` and `{000..099}` stands for."""
    found = BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    between = RANGE.fullmatch(found[1])
    words = _range(between[1], between[2]) if between else found[1].split(",")
    for word in words:
        yield from braces(pattern[: found.start()] + word + pattern[found.end() :])


def _range(first: str, last: str) -> Iterator[str]:
    width = len(first) if first.startswith("0") else 0
    return (str(number).zfill(width) for number in range(int(first), int(last) + 1))


def _files(pattern: str, option: str) -> list[Path]:
    if place(pattern).is_file():
        return [place(pattern)]
    files = [file for one in braces(pattern) for file in _matches(one, option)]
    if not files:
        raise UserError(f"data.{option}: no file matches '{pattern}'")
    return files


def _matches(pattern: str, option: str) -> list[Path]:
    if not has_magic(pattern):
        return [find_file(pattern, option)]
    return [Path(path) for path in sorted(glob(str(place(pattern)), recursive=True)) if Path(path).is_file()]

"""Read pairs of texts: two columns of a table, or the lines of two files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvd_train.data.files import find_file
from hvd_train.data.texts import rows
from hvd_train.data.tokenizing.texts import decoded
from hvd_train.errors import UserError

Paths = str | list[str]
"""A table, or two files with a line for each pair."""


@dataclass(frozen=True)
class Columns:
    """Where the texts of a pair are in a table."""

    source: str
    target: str
    delimiter: str | None = None


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts, none of which is empty."""

    name: str
    """The name of the data in messages."""
    sources: Sequence[str]
    targets: Sequence[str]
    marks: Sequence[Any] = ()
    """The value of the column that divides training and held-out pairs, of each pair."""

    def chosen(self, positions: Sequence[int]) -> Pairs:
        """Return the pairs at `positions`."""
        sources, targets = ([column[i] for i in positions] for column in (self.sources, self.targets))
        return Pairs(self.name, sources, targets, [self.marks[i] for i in positions] if self.marks else ())


def files_of(paths: Paths, option: str) -> list[Path]:
    """Return the files that `paths` name; UserError, which names `option`, if one is missing."""
    return [find_file(path, option) for path in ([paths] if isinstance(paths, str) else paths)]


def named(paths: Paths | Mapping[str, Paths] | None) -> dict[str, Paths]:
    """Return `data.test_path` by the names of the splits; one path is the split `test`."""
    if paths is None:
        return {}
    return dict(paths) if isinstance(paths, Mapping) else {"test": paths}


def read(files: Sequence[Path], columns: Columns, mark: str | None = None) -> Pairs:
    """Return the pairs of a table, or of two files with a line for each pair.

    `mark` is a further column. Raise UserError for a missing column, for files with unequal numbers of
    lines, for texts that are not UTF-8, and for a text that is empty.
    """
    if len(files) == 2:
        if mark is not None:
            raise UserError(
                f"data: two files have no column '{mark}', expected a table for data.test_rows and data.fold.group"
            )
        return _of_lines(*files)
    found = rows.read(
        files[0], str(files[0]), [columns.source, columns.target], mark or columns.target, columns.delimiter
    )
    for i, texts in enumerate(found.texts):
        for column, text in zip((columns.source, columns.target), texts, strict=True):
            if text is None or not text.strip():
                raise _empty(found.place(i), f"column '{column}'")
    sources, targets = zip(*found.texts, strict=True)
    return Pairs(found.name, sources, targets, found.labels if mark else ())


def _of_lines(source: Path, target: Path) -> Pairs:
    sides = [_lines(file) for file in (source, target)]
    counts = [len(lines) for lines in sides]
    if counts[0] != counts[1]:
        raise UserError(
            f"{source} has {counts[0]:,} lines and {target} has {counts[1]:,}, expected equal numbers: line i of one is the "
            "translation of line i of the other"
        )
    if not counts[0]:
        raise UserError(f"{source}: is empty, expected at least one line")
    for file, lines in zip((source, target), sides, strict=True):
        for number, line in enumerate(lines, 1):
            if not line.strip():
                raise _empty(f"{file}: line {number}", "the text")
    return Pairs(f"{source}, {target}", *sides)


def _lines(file: Path) -> list[str]:
    text = decoded(file.read_bytes(), str(file))
    return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _empty(place: str, what: str) -> UserError:
    return UserError(f"{place}: {what} is empty, expected a text; both sides of a pair must have words")


def of_lengths(pairs: Pairs, fewest: int, most: int | None) -> Pairs:
    """Return the pairs whose texts have from `fewest` to `most` words."""
    if fewest <= 1 and most is None:
        return pairs
    both = zip(pairs.sources, pairs.targets, strict=True)
    return pairs.chosen([i for i, pair in enumerate(both) if all(_has_words(text, fewest, most) for text in pair)])


def _has_words(text: str, fewest: int, most: int | None) -> bool:
    number = len(text.split())
    return fewest <= number and (most is None or number <= most)


def without_doubles(pairs: Pairs) -> Pairs:
    """Return the pairs, each of which is there once."""
    first: dict[tuple[str, str], int] = {}
    for i, pair in enumerate(zip(pairs.sources, pairs.targets, strict=True)):
        first.setdefault(pair, i)
    return pairs if len(first) == len(pairs.sources) else pairs.chosen([*first.values()])

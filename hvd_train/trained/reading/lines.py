"""Lines of text files and of stdin, plain or gzip, in blocks."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from hvd_train.config.fetched import place
from hvd_train.data.records.parse import parse_json
from hvd_train.errors import UserError, nearest
from hvd_train.trained.input import Block, Place

STDIN = "-"
GZIP = b"\x1f\x8b"
ROWS = 256
"""Records in a block, as in a batch of an evaluation."""


def name_of(path: str) -> str:
    """Return the name of a file in messages."""
    return "stdin" if path == STDIN else path


def find(path: str) -> Path:
    """Return the file or folder at `path`; UserError if there is none."""
    found = place(path)
    if not found.exists():
        known = [entry.name for entry in found.parent.iterdir()] if found.parent.is_dir() else []
        raise UserError(f"{path}: no such file or folder{nearest(found.name, known)}")
    return found


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Open a file or stdin for reading; UserError if it is empty, cannot be read or is damaged gzip."""
    if path == STDIN:
        yield sys.stdin.buffer
        return
    try:
        with open(find(path), "rb") as file:
            packed = file.peek(2)[:2] == GZIP
            yield gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[misc]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers from 1; UserError if there is none."""
    empty = True
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                empty = False
                yield number, line
    if empty:
        raise UserError(f"{name_of(path)}: is empty, expected at least one line")


def blocks(paths: Sequence[str], make: Callable[[bytes, Callable[[], str]], Any]) -> Iterator[Block]:
    """Yield blocks of the records that `make` makes of the lines of files, given their places."""
    for path in paths:
        found = lines(path)
        while part := list(islice(found, ROWS)):
            place = _places(path, [number for number, _ in part])
            yield Block([make(line, partial(place, i)) for i, (_, line) in enumerate(part)], place)


def json_blocks(paths: Sequence[str]) -> Iterator[Block]:
    """Yield blocks of values of JSON, one on each line."""
    return blocks(paths, parse_json)


def _places(path: str, numbers: Sequence[int]) -> Place:
    return lambda i: f"{name_of(path)}: line {numbers[i]}"


def keep(block: Block, names: Iterable[str]) -> Block:
    """Return a block of dicts with the values of `names` beside; UserError for a name that is missing."""
    beside = {}
    for name in names:
        for number, record in enumerate(block.records):
            if not isinstance(record, dict) or name not in record:
                known = record if isinstance(record, dict) else ()
                raise UserError(f"{block.place(number)}: --keep: no '{name}'{nearest(name, known)}")
        beside[name] = [record[name] for record in block.records]
    return Block(block.records, block.place, {**block.beside, **beside})

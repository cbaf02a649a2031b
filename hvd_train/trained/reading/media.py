"""Files of pictures and sounds: named ones, those of folders, of tables of paths, and of lines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from hvd_train.data.tables.endings import suffix
from hvd_train.errors import UserError
from hvd_train.trained.input import Block, Place
from hvd_train.trained.reading import lines, tables

FILES = 64
"""Files in a block."""
FILE = "file"
"""The column with the path of a file, beside the predictions."""


def blocks(
    paths: Sequence[str], suffixes: Sequence[str], column: str, keep: Sequence[str], options: dict[str, Any]
) -> Iterator[Block]:
    """Yield blocks of paths of files.

    A folder stands for the files below it with one of `suffixes`, sorted; hidden ones do not count. A
    table has paths in `column`, from its folder. Lines of stdin are paths. Raise UserError for a
    folder without such files, and for a file with another ending.
    """
    for path in paths:
        if path == lines.STDIN:
            yield from lines.blocks([path], _path)
            continue
        place = lines.find(path)
        if place.is_dir():
            yield from _of_folder(path, place, suffixes)
        elif path.lower().endswith(tuple(suffixes)):
            yield _block([path])
        elif suffix(path) in tables.SUFFIXES:
            root = Path(options.get("root") or place.parent).expanduser()
            yield from (
                _of_rows(block, root, column) for block in tables.blocks([path], {column: "text"}, keep, options)
            )
        else:
            raise UserError(f"{path}: expected a folder, a table of paths, or {', '.join(suffixes)}")


def _of_folder(path: str, folder: Path, suffixes: Sequence[str]) -> Iterator[Block]:
    files = _below(folder, tuple(suffixes))
    found = False
    while part := list(islice(files, FILES)):
        found = True
        yield _block(part)
    if not found:
        raise UserError(f"{path}: no files in this folder, expected {', '.join(suffixes)}")


def _below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            os.path.join(root, name)
            for name in sorted(files)
            if not name.startswith(".") and name.lower().endswith(suffixes)
        )


def _block(files: list[str], place: Place | None = None, beside: dict[str, Any] | None = None) -> Block:
    return Block(files, place or (lambda i: files[i]), {FILE: files, **(beside or {})})


def _of_rows(block: Block, root: Path, column: str) -> Block:
    names = tables.by_column(block.records, block.place)[column]()
    found = [tables.value(names, row) for row in range(len(names))]
    empty = next((row for row, name in enumerate(found) if not isinstance(name, str)), None)
    if empty is not None:
        raise UserError(f"{block.place(empty)}: column '{column}': no path, expected one in each row")
    return _block([os.path.join(root, name) for name in found], block.place, dict(block.beside))


def _path(line: bytes, place: Any) -> str:
    return os.fsdecode(line.rstrip(b"\r\n"))

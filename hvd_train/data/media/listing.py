"""List files with their labels: a folder for each class, or a table of paths and labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.config.fetched import place
from hvd_train.data.files import find_file
from hvd_train.data.tables.any_file import table_file
from hvd_train.data.tables.selection import check_columns
from hvd_train.data.tables.table import Table, Task
from hvd_train.data.tables.values import targets
from hvd_train.data.target_warnings import shortened
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError, nearest

TABLES = (".csv", ".parquet", ".jsonl")
PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}
"""Names of folders that hold a part of a data set, not a class."""


@dataclass(frozen=True)
class Layout:
    """The options that say which files there are, and how a table describes them."""

    suffixes: tuple[str, ...]
    """Endings of the names of files that count, in lower case."""
    path_column: str
    label_column: str
    task: Task
    delimiter: str
    root: str | None
    group_column: str | None = None
    """The column of a table with the groups of the files, for folds."""

    def label(self, listing: Listing) -> str:
        """Return the name of the targets: a column, or `folder`."""
        return "folder" if listing.at is None else self.label_column


@dataclass(frozen=True)
class Listing:
    """Files below `root` and the target of each, a class (int64) or a row of `(n, 1)` floats."""

    where: str
    """The folder or the table in messages."""
    root: str
    names: Array
    """Paths below `root` as bytes, which take little memory and are fast to send to workers."""
    targets: Tensor
    classes: list[Any]
    """The names of the classes; empty in a regression."""
    at: Callable[[int], str] | None = None
    """Returns the text for a row of the table; None for a folder."""
    warnings: tuple[str, ...] = ()
    numbers: Array | None = None
    """The row of the table for each file; None: in order."""
    groups: Array | None = None
    """The group of each file of the table, for folds."""

    def file(self, index: int) -> str:
        """Return the path of a file."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def place(self, index: int) -> str:
        """Return the end of a message about a file: its line in the table."""
        number = index if self.numbers is None else int(self.numbers[index])
        return f" ({self.where}, {self.at(number)})" if self.at else ""

    def rows(self, indices: Tensor) -> Listing:
        """Return the files at `indices`."""
        at = indices.numpy()
        groups = None if self.groups is None else self.groups[at]
        return replace(self, names=self.names[at], targets=self.targets[indices], numbers=at, groups=groups)


def list_files(path: str, option: str, layout: Layout) -> Listing:
    """Return the files at `path`, which is a folder of folders or a table.

    Raise UserError, which names the option, for a path that is neither, for a folder without
    classes or files, and for a table without the columns or with missing values.
    """
    folder = place(path)
    if not folder.is_dir():
        return _of_table(path, option, layout)
    if layout.task == "regression":
        raise UserError(f"{path}: the folders of a folder are classes; a regression needs a table: {', '.join(TABLES)}")
    return _of_folder(folder, path, layout)


def check_classes(train: Listing) -> None:
    """Raise UserError for fewer than two classes, and for a class without files."""
    if len(train.classes) == 1:
        what = "folder of a class" if train.at is None else "class"
        raise UserError(f"{train.where}: found one {what}, '{train.classes[0]}', expected at least two")
    counts = torch.bincount(train.targets, minlength=len(train.classes)) if train.classes else torch.ones(1)
    if not counts.all():
        empty = train.classes[int((counts == 0).nonzero()[0])]
        raise UserError(f"{train.where}: the folder '{empty}' has no files that count; remove it, or fill it")


def with_classes(test: Listing, classes: list[Any], where: str) -> Listing:
    """Return `test` with targets that number the classes of the training samples, which are in `where`.

    Raise UserError for a class that no training sample has.
    """
    if bool(test.classes) != bool(classes):
        kinds = {True: "classes", False: "numbers"}
        raise UserError(f"{test.where}: has {kinds[bool(test.classes)]}, expected {kinds[bool(classes)]} as {where}")
    number = {name: i for i, name in enumerate(classes)}
    counts = torch.bincount(test.targets, minlength=len(test.classes)).tolist() if test.classes else []
    for name, count in zip(test.classes, counts, strict=True):
        if count and name not in number:
            raise UserError(
                f"{test.where}: no training sample is of class '{name}'{nearest(str(name), map(str, number))}"
            )
    codes = torch.tensor([number.get(name, -1) for name in test.classes])
    return replace(test, targets=codes[test.targets], classes=classes) if test.classes else test


def _of_folder(folder: Path, path: str, layout: Layout) -> Listing:
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    files, codes, others = [], [], []
    for code, name in enumerate(["", *classes], start=-1):
        for file in _below(folder, name) if name else _beside(folder):
            if code < 0 or not file.lower().endswith(layout.suffixes):
                others.append(file)
            else:
                files.append(os.fsencode(file))
                codes.append(code)
    if not files:
        raise _nothing(path, classes, others, layout)
    if set(classes) <= PARTS:
        raise UserError(
            f"{path}: its folders are {shortened(classes)}, expected one folder for each class; set data.path and "
            "data.test_path to one of them each"
        )
    return Listing(
        path, str(folder), np.array(files), torch.tensor(codes), classes, None, _skipped(path, others, layout)
    )


def _skipped(path: str, others: list[str], layout: Layout) -> tuple[str, ...]:
    if not others:
        return ()
    number = f"{len(others)} files, such as '{others[0]}'" if len(others) > 1 else f"the file '{others[0]}'"
    return (f"{path}: skipped {number}; expected {_endings(layout)} in the folder of a class",)


def _beside(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))


def _below(folder: Path, name: str) -> Iterator[str]:
    """Yield files at any depth below the class `name`, sorted; nothing that is hidden."""
    for root, folders, files in os.walk(folder / name, followlinks=True):
        folders[:] = sorted(inner for inner in folders if not inner.startswith("."))
        inside = os.path.relpath(root, folder)
        yield from (os.path.join(inside, file) for file in sorted(files) if not file.startswith("."))


def _nothing(path: str, classes: list[str], others: list[str], layout: Layout) -> UserError:
    if any(file.lower().endswith(layout.suffixes) for file in others):
        return UserError(
            f"{path}: files such as '{others[0]}' are in no folder of a class; expected a folder for each class, or a table "
            "of paths and labels"
        )
    inside = f"has {len(others)} files such as '{others[0]}'" if others else f"has {len(classes)} folders without files"
    found = inside if others or classes else "is empty"
    return UserError(f"{path}: {found}, expected a folder for each class with {_endings(layout)}")


def _endings(layout: Layout) -> str:
    return ", ".join(layout.suffixes)


def _of_table(path: str, option: str, layout: Layout) -> Listing:
    if not path.lower().endswith(TABLES):
        if not place(path).exists():
            raise _missing(path, option)
        raise UserError(
            f"data.{option}: '{path}', expected a folder, or a table of paths and labels: {', '.join(TABLES)}"
        )
    file = find_file(path, option)
    source = table_file(file, path, layout.delimiter)
    arrow = source.read()
    table = Table(arrow, [source], [0], np.arange(arrow.num_rows))
    for column, name in (("path_column", layout.path_column), ("label_column", layout.label_column)):
        if arrow.num_rows and name not in arrow.column_names:
            raise UserError(f"{path}: no column '{name}'{nearest(name, arrow.column_names)}; data.{column} names it")
    check_columns(table, layout.label_column, [layout.path_column])
    _refuse_gaps(table, [layout.path_column, layout.label_column])
    y, classes = targets(table, layout.label_column, layout.task)
    root = place(layout.root) if layout.root else file.parent
    if not root.is_dir():
        raise UserError(f"data.root: no folder '{layout.root}'")
    groups = None if layout.group_column is None else table.groups(layout.group_column)
    return Listing(path, str(root), _paths(table, layout.path_column), y, classes, source.at, groups=groups)


def _missing(path: str, option: str) -> UserError:
    missing = place(path)
    known = [entry.name for entry in missing.parent.iterdir()] if missing.parent.is_dir() else []
    return UserError(f"data.{option}: no folder or table '{path}'{nearest(missing.name, known)}")


def _refuse_gaps(table: Table, columns: list[str]) -> None:
    for name in columns:
        missing = np.asarray(table.arrow[name].is_null(nan_is_null=True).to_numpy())
        if missing.any():
            raise UserError(
                f"{table.place(name, int(missing.argmax()))}: no value, expected a path and a label in each row"
            )


def _paths(table: Table, name: str) -> Array:
    values = table.arrow[name].to_pylist()
    other = next((i for i, value in enumerate(values) if not isinstance(value, str)), None)
    if other is not None:
        raise UserError(f"{table.place(name, other)}: {values[other]!r}, expected the path of a file")
    return np.array([os.fsencode(value) for value in values])

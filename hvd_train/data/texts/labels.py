"""From the labels of rows to the targets of samples: classes by name, or numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from hvd_train.data.fitted import Fitted, classes_of
from hvd_train.data.tables.values import NUMBER
from hvd_train.data.texts.rows import Rows
from hvd_train.data.value_checks import LARGEST, Array
from hvd_train.errors import UserError, nearest

Wanted = Literal["auto", "classification", "regression"]

PLACED = 10
"""Damaged rows whose lines are counted for messages."""
INTEGER = re.compile(r"[-+]?\d+")
NAMES = {str: "a text", bool: "true or false", int: "an integer", float: "a number", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Targets:
    """How labels become targets."""

    classes: Sequence[Any]
    """The classes in the order of their numbers; empty in a regression."""

    @property
    def outputs(self) -> int:
        """The number of classes; 1 in a regression."""
        return len(self.classes) or 1

    def of(self, rows: Rows, column: str) -> Array:
        """Return the targets of `rows`: int64 classes, or float32 numbers; 0 where the label is missing.

        Raise UserError for a label that is no class of the training rows.
        """
        if not self.classes:
            return np.array([0.0 if label is None else label for label in rows.labels], np.float32)
        numbers = {name: number for number, name in enumerate(self.classes)}
        for row, label in enumerate(rows.labels):
            if label is not None and label not in numbers:
                shown = f"'{label}'" if isinstance(label, str) else label
                raise UserError(
                    f"{rows.place(row)}: '{column}': found {shown}, expected a class of the training rows"
                    f"{nearest(str(label), map(str, self.classes))}"
                )
        return np.array([0 if label is None else numbers[label] for label in rows.labels], np.int64)


def typed(files: Sequence[Rows], fitted: Fitted | None) -> list[Rows]:
    """Return `files` with labels as numbers where those of training, in the first file or `fitted`, all are."""
    kind = _kind([text for text in files[0].labels if text]) if fitted is None else _kind_of_run(fitted)
    return [rows if rows.typed else _as(rows, kind) for rows in files]


def _kind_of_run(fitted: Fitted) -> type:
    classes = classes_of(fitted)
    return type(classes[0]) if classes else float


def _kind(labels: Sequence[Any]) -> type:
    for kind, pattern in ((int, INTEGER), (float, NUMBER)):
        if labels and all(isinstance(label, str) and pattern.fullmatch(label.strip()) for label in labels):
            return kind
    return str


def _as(rows: Rows, kind: type) -> Rows:
    """Return `rows` whose labels are of `kind`, texts that are no numbers as they are, and empty ones missing."""
    pattern = {int: INTEGER, float: NUMBER}.get(kind, re.compile(""))
    return replace(
        rows,
        labels=[None if not text else kind(text) if pattern.fullmatch(text.strip()) else text for text in rows.labels],
    )


def fit(files: Sequence[Rows], column: str, wanted: Wanted, fitted: Fitted | None) -> Targets:
    """Return the targets of the labels in `column`. The first of `files` has the training rows.

    The classes are those of `fitted` if it is given. Texts and integers are classes, other numbers a
    regression. Raise UserError for labels of several kinds or of another kind than `wanted` needs.
    """
    if fitted is not None and (classes := classes_of(fitted)):
        return Targets(classes)
    kinds = {type(label) for label in files[0].labels if label is not None}
    if not kinds:
        raise UserError(f"{files[0].name}: '{column}' has no labels, expected one for each text")
    if fitted is not None or wanted == "regression" or (wanted == "auto" and float in kinds and kinds <= {int, float}):
        for rows in files:
            _check_numbers(rows, column)
        return Targets(())
    _check_kinds(files[0], column)
    return Targets(sorted({label for label in files[0].labels if label is not None}))


def _check_kinds(rows: Rows, column: str) -> None:
    """Raise UserError for the first label that is no class, or of another type than the first one."""
    first = next(label for label in rows.labels if label is not None)
    expected = type(first) if isinstance(first, str | bool | int) else str
    for row, label in enumerate(rows.labels):
        if label is not None and type(label) is not expected:
            before = f"{NAMES[expected]} as before" if expected is type(first) else "a class: a text or an integer"
            raise UserError(f"{rows.place(row)}: '{column}': found {_shown(label)}, expected {before}")


def _check_numbers(rows: Rows, column: str) -> None:
    for row, label in enumerate(rows.labels):
        if label is None:
            continue
        is_number = isinstance(label, int | float) and not isinstance(label, bool)
        if not is_number or not math.isfinite(label) or abs(label) > LARGEST:
            raise UserError(f"{rows.place(row)}: '{column}': found {_shown(label)}, expected a finite number")


def _shown(label: Any) -> str:
    name = NAMES.get(type(label), type(label).__name__)
    return name if isinstance(label, list | dict) else f"{name} ({label})"


def damage(rows: Rows, columns: Sequence[str], label: str) -> dict[int, str]:
    """Return the messages for rows without a text or a label, by row."""
    found: dict[int, str] = {}
    for row, texts in enumerate(rows.texts):
        for column, text in zip(columns, texts, strict=True):
            if text is None or not text.strip():
                found[row] = f"'{column}': {'a missing' if text is None else 'an empty'} text"
        if rows.labels[row] is None:
            found[row] = f"'{label}': a missing label"
    # Counting lines to each of many rows would be slow.
    places = {row: rows.place(row) if n < PLACED else f"{rows.name}: row {row} (from 0)" for n, row in enumerate(found)}
    more = f"; {len(found)} rows are like it" if len(found) > 1 else ""
    return {
        row: f"{places[row]}: {what}, expected one{more if row == min(found) else ''}" for row, what in found.items()
    }

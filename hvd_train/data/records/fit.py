"""From scanned records to the layout of their samples, their classes and their description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hvd_train.data.fitted import Fitted, classes_of
from hvd_train.data.records.sample_format import TargetKind
from hvd_train.data.records.scan import Numbers, Scan
from hvd_train.data.spec import Task
from hvd_train.data.value_checks import FEW_CLASSES, MOST_CLASSES_PER_SAMPLE
from hvd_train.errors import UserError, nearest

Wanted = Literal["auto", "classification", "regression", "language"]
NAMES = {
    str: "a text",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    Numbers: "a list",
    dict: "an object",
}


class Targets(NamedTuple):
    """How targets are used, as values of JSON."""

    kind: TargetKind
    task: Task
    outputs: int
    """The number of classes or of numbers; 0 if it is not known."""
    classes: Sequence[str] = ()
    """The names of the classes in the order of their numbers, if they are texts."""


def fit_targets(scans: Sequence[Scan], key: str, wanted: Wanted, fitted: Fitted | None = None) -> Targets:
    """Return how the targets at `key` are used. The first of `scans` is the training data.

    The classes are those of `fitted` if it is given. Texts and integers are classes, other numbers a
    regression. Lists of equal length are a regression too, and lists of integers of unequal length
    stay lists. Raise UserError for targets of several kinds or of another kind than `wanted` needs.
    """
    present = [value for value in scans[0].targets if value is not None]
    kinds = {type(value) for value in present}
    if wanted == "language":
        _check_kind(scans, key, (str,), "a text")
        return Targets("value", "language", 0)
    if kinds == {str} and wanted != "regression":
        _check_kind(scans, key, (str,), "a text")
        names = tuple(sorted(set(present)) if fitted is None else classes_of(fitted) or ())
        return Targets("class", "classification", len(names), names)
    if kinds <= {bool, int} and wanted != "regression":
        _check_kind(scans, key, (bool, int), "an integer")
        return Targets("class", "classification", _check_classes(scans, key) + 1)
    if kinds <= {bool, int, float} and wanted != "classification":
        _check_kind(scans, key, (bool, int, float), "a number")
        return Targets("numbers", "regression", 1)
    if kinds == {Numbers}:
        _check_kind(scans, key, (Numbers,), "a list of numbers")
        return _fit_lists([value for scan in scans for value in scan.targets if value is not None], wanted)
    if wanted == "auto" and kinds == {dict}:
        return Targets("value", "other", 0)
    first = type(present[0])
    allowed = {"classification": (str, bool, int), "regression": (bool, int, float, Numbers)}.get(wanted, (first,))
    _check_kind(scans, key, allowed, f"values for task: {wanted}" if wanted != "auto" else f"{NAMES[first]} as before")
    _check_kind(scans, key, (first,), f"{NAMES[first]} as before")
    raise UserError(f"{scans[0].place(0)}: '{key}': found {NAMES[first]}, expected a text, a number or numbers")


def _fit_lists(values: Sequence[Numbers], wanted: Wanted) -> Targets:
    integers, shapes = all(value.integers for value in values), {value.shape for value in values}
    if integers and wanted != "regression" and (wanted == "classification" or len(shapes) > 1):
        return Targets("value", "other", max(value.largest for value in values) + 1)
    if len(shapes) > 1:
        return Targets("value", "other", 0)
    return Targets("numbers", "regression", int(torch.Size(shapes.pop()).numel()))


def labels(scan: Scan, key: str, targets: Targets) -> Tensor:
    """Return the class of each record, int64 `(n,)`; -1 without classes, and 0 for damaged records.

    Raise UserError for a class that the training data do not have.
    """
    if targets.kind != "class":
        return torch.full((len(scan.targets),), -1)
    if not targets.classes:
        return torch.tensor([value or 0 for value in scan.targets], dtype=torch.int64)
    numbers = {name: number for number, name in enumerate(targets.classes)}
    for number, value in enumerate(scan.targets):
        if value is not None and value not in numbers:
            raise UserError(
                f"{scan.place(number)}: '{key}': found '{value}', expected a class of the training data"
                f"{nearest(value, targets.classes)}"
            )
    return torch.tensor([0 if value is None else numbers[value] for value in scan.targets], dtype=torch.int64)


def inexact_warnings(scan: Scan, floats: frozenset[str]) -> list[str]:
    """Return warnings about integers that float32 may change."""
    return [
        f"{text}, and float32 keeps integers up to 2^24 only; identifiers are no inputs"
        for key, text in scan.inexact.items()
        if key in floats
    ]


def _check_kind(scans: Sequence[Scan], key: str, kinds: tuple[type, ...], expected: str) -> None:
    for scan in scans:
        for number, value in enumerate(scan.targets):
            if value is not None and type(value) not in kinds:
                shown = "" if isinstance(value, Numbers | dict) else f" ({value})"
                raise UserError(
                    f"{scan.place(number)}: '{key}': found {NAMES[type(value)]}{shown}, expected {expected}"
                )


def _check_classes(scans: Sequence[Scan], key: str) -> int:
    """Return the largest class; UserError for negative classes, and for ones too large to be classes."""
    largest = 0
    for scan in scans:
        most = FEW_CLASSES + MOST_CLASSES_PER_SAMPLE * len(scan.targets)
        for number, value in enumerate(scan.targets):
            if value is not None and not 0 <= value < most:
                raise UserError(
                    f"{scan.place(number)}: '{key}': found the class {value} among {len(scan.targets)} samples, expected "
                    "classes 0, 1, 2, ...; task: regression takes any numbers"
                )
            largest = max(largest, value or 0)
    return int(largest)

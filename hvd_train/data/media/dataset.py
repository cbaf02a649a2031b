"""From files with labels to a data set whose samples are decoded one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from hvd_train.data.base import Dataset
from hvd_train.data.fitted import Fitted, classes_of
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.media.listing import Layout, Listing, check_classes, list_files, with_classes
from hvd_train.data.spec import DataSpec
from hvd_train.data.target_warnings import target_warnings
from hvd_train.errors import UserError

PROBED = 20
"""Files that are tried for one that can be read."""


class Decoder(Protocol):
    """Makes inputs of files. It is picklable, for worker processes."""

    @property
    def document(self) -> dict[str, Any]:
        """How a file becomes an input, as JSON for `data.json` of the run folder."""

    @property
    def facts(self) -> dict[str, Any]:
        """The kind of new inputs, and what `document` lacks to make the decoder again, as JSON."""

    @property
    def remedy(self) -> str:
        """What makes inputs of different shapes fit into one batch."""

    def __call__(self, file: str) -> Tensor:
        """Return the input in `file`; UserError, which names the file, for a damaged one."""


@dataclass(frozen=True)
class MediaItems:
    """Samples (input, target), each made of one file of `listing`."""

    listing: Listing
    decode: Decoder

    @property
    def name(self) -> str:
        return self.listing.where

    @property
    def labels(self) -> Tensor:
        targets = self.listing.targets
        return targets if self.listing.classes else torch.full((len(targets),), -1)

    def __len__(self) -> int:
        return len(self.listing.names)

    @property
    def remedy(self) -> str:
        return self.decode.remedy

    def file(self, index: int) -> str:
        return self.listing.file(index)

    def item(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an input and its target, an int64 class or one float32 number of shape (1,)."""
        try:
            return self.decode(self.listing.file(index)), self.listing.targets[index]
        except UserError as error:
            raise UserError(f"{error}{self.listing.place(index)}") from None


@dataclass(frozen=True)
class Division:
    """The options that say which samples are held out."""

    test_path: str | dict[str, str] | None
    hold_out: HoldOut

    def paths(self) -> list[tuple[str, str, str]]:
        """Return the name, the option in messages and the path of each held-out part.

        The first is the one whose metrics have no prefix.
        """
        if self.test_path is None or isinstance(self.test_path, str):
            return [("test", "test_path", self.test_path)] if self.test_path else []
        return [(name, f"test_path.{name}", path) for name, path in self.test_path.items()]


def dataset(
    path: str,
    division: Division,
    layout: Layout,
    decoder: Callable[[str], Decoder],
    fitted: Fitted | None = None,
) -> Dataset:
    """Return the files at `path` as a data set, whose classes are those of `fitted` if it is given.

    `decoder` makes the decoder from one training file, which it may read to learn a size.
    """
    whole = list_files(path, "path", layout)
    if fitted is None:
        check_classes(whole)
    else:
        whole = with_classes(whole, classes_of(fitted) or [], "the run")
    hold_out = division.hold_out if division.test_path is None else replace(division.hold_out, fraction=0.0)
    train_rows, test_rows = hold_out.rows(
        len(whole.names), path, whole.targets if whole.classes else None, whole.groups
    )
    train = whole.rows(train_rows)
    tests = {
        name: with_classes(list_files(p, option, layout), whole.classes, whole.where)
        for name, option, p in division.paths()
    }
    test = next(iter(tests.values()), whole.rows(test_rows))
    decode, x = _probe(train, decoder)
    outputs = len(whole.classes) or 1
    about_targets = (
        [] if fitted is not None else target_warnings(train.targets, test.targets, outputs, path, whole.classes)
    )
    return Dataset(
        MediaItems(train, decode),
        MediaItems(test, decode),
        DataSpec(tuple(x.shape), outputs, "classification" if whole.classes else "regression"),
        (*(w for listing in (whole, *tests.values()) for w in listing.warnings), *about_targets),
        {"files": decode.document, "target": {"name": layout.label(whole), "classes": whole.classes or None}},
        {name: MediaItems(listing, decode) for name, listing in list(tests.items())[1:]},
        input=decode.facts,
    )


def _probe(train: Listing, decoder: Callable[[str], Decoder]) -> tuple[Decoder, Tensor]:
    """Return the decoder and the input of the first file that can be read.

    Raise the error of the first file if none of the first `PROBED` can.
    """
    errors = []
    for index in range(min(PROBED, len(train.names))):
        try:
            decode = decoder(train.file(index))
            return decode, decode(train.file(index))
        except UserError as error:
            errors.append(f"{error}{train.place(index)}")
    raise UserError(errors[0])

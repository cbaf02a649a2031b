"""From files of texts and labels to a data set whose tokens are made once per host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvd_train.config.tokenizer_section import TokenizerSection
from hvd_train.data.base import Dataset
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.mapped import MappedArray
from hvd_train.data.spec import DataSpec, Task
from hvd_train.data.target_warnings import shortened, target_warnings
from hvd_train.data.texts import labels
from hvd_train.data.texts.encoder import TextEncoder, Texts, characters
from hvd_train.data.texts.labelled import IDS, MASK, LabelledTexts, encoded
from hvd_train.data.texts.labels import Targets, Wanted
from hvd_train.data.texts.rows import Row, Rows, read
from hvd_train.data.tokenizing import saved
from hvd_train.data.tokenizing.base import Tokenizer, describe
from hvd_train.data.tokenizing.library import LibraryTokenizer
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError

MANY_CUT = 0.01
"""The share of texts that are cut from which on users are warned."""
MANY_UNKNOWN = 0.05
"""The share of unknown tokens from which on users are warned."""


@dataclass(frozen=True)
class Wish:
    """The options of the source."""

    columns: Sequence[str]
    target: str
    task: Wanted
    tokenizer: TokenizerSection
    length: int
    delimiter: str | None
    hold_out: HoldOut


@dataclass(frozen=True)
class Part:
    """The rows of one split."""

    texts: Sequence[Row]
    targets: Array
    damaged: Mapping[int, str]
    """The messages for damaged rows, in the order of the file."""
    name: str

    def taken(self, rows: Array) -> Part:
        """Return the rows at the positions `rows`."""
        places = {old: new for new, old in enumerate(rows.tolist())}
        damaged = {places[old]: text for old, text in self.damaged.items() if old in places}
        return Part([self.texts[row] for row in rows], self.targets[rows], damaged, self.name)

    @property
    def usable(self) -> list[Texts]:
        """The texts; those of damaged rows are empty."""
        return [tuple(text or "" for text in row) for row in self.texts]


def prepared(
    files: Sequence[tuple[Path, str]], wish: Wish, fitted: Fitted | None
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays and facts that the ranks of a host share.

    The first of `files`, which have names for messages, has the training rows. Without others, some of
    its rows are held out.
    """
    rows = labels.typed([read(file, name, wish.columns, wish.target, wish.delimiter) for file, name in files], fitted)
    targets = labels.fit(rows, wish.target, wish.task, fitted)
    parts = [_part(one, targets, wish) for one in rows]
    if len(parts) == 1:
        parts = _held_out(parts[0], targets, wish, _groups(*files[0], wish))
    tokenizer = _tokenizer(wish, parts[0], fitted)
    encoder = TextEncoder(tokenizer, wish.length, len(wish.columns) == 2)
    arrays: dict[str, Array] = {}
    damaged, warnings = [], []
    for number, part in enumerate(parts):
        made = encoded(encoder, part.usable)
        empty = {row: f"{part.name}: text number {row} has no tokens, expected one at least" for row in made.empty}
        arrays |= {f"{name} {number}": array for name, array in made.arrays.items()} | {
            f"targets {number}": part.targets
        }
        damaged.append({**part.damaged, **{row: text for row, text in empty.items() if row not in part.damaged}})
        warnings += _cut(part, made.cut, wish) + _unknown(part, made.arrays["ids"], tokenizer)
    if fitted is None:
        warnings += _of_targets(parts, targets, wish) + _twice(parts)
    return arrays, {
        "classes": [*targets.classes],
        "tokenizer": describe(wish.tokenizer.label, tokenizer),
        "pad": encoder.pad,
        "damaged": [[*one.items()] for one in damaged],
        "names": [part.name for part in parts],
        "warnings": warnings,
    }


def dataset(
    arrays: Mapping[str, MappedArray], facts: Mapping[str, Any], wish: Wish, held_out: Sequence[str]
) -> Dataset:
    """Return the data set of what `prepared` returned. `held_out` names the splits after the first."""
    splits = [
        LabelledTexts(
            arrays[f"ids {number}"],
            arrays.get(f"types {number}"),
            arrays[f"ends {number}"],
            arrays[f"targets {number}"],
            dict(facts["damaged"][number]),
            name,
        )
        for number, name in enumerate(facts["names"])
    ]
    targets, tokenizer = Targets(facts["classes"]), facts["tokenizer"]
    task: Task = "classification" if targets.classes else "regression"
    pad = {"value": {IDS: facts["pad"]}, "mask": {MASK: IDS}}
    return Dataset(
        splits[0],
        splits[1],
        DataSpec((), targets.outputs, task, vocabularies={IDS: tokenizer["vocabulary"]}),
        tuple(facts["warnings"]),
        {"target": {"name": wish.target, "classes": facts["classes"]}, "tokenizer": tokenizer},
        dict(zip(held_out[1:], splits[2:], strict=True)),
        input={"kind": "encoded_texts", "text": [*wish.columns], "length": wish.length, "pad": pad},
        pad=pad,
    )


def _part(rows: Rows, targets: Targets, wish: Wish) -> Part:
    damaged = labels.damage(rows, wish.columns, wish.target)
    if len(damaged) == len(rows.texts):
        raise UserError(damaged[0])
    return Part(rows.texts, targets.of(rows, wish.target), damaged, rows.name)


def _groups(file: Path, name: str, wish: Wish) -> list[str] | None:
    """Return the group of each row for a fold; None if groups are not needed."""
    column = wish.hold_out.group
    return None if column is None else [*map(str, read(file, name, [], column, wish.delimiter).labels)]


def _held_out(whole: Part, targets: Targets, wish: Wish, groups: Sequence[str] | None) -> list[Part]:
    if wish.hold_out.stratify and not targets.classes:
        raise UserError("data.stratify: the labels are numbers, expected classes; leave stratify out")
    known = torch.from_numpy(whole.targets) if targets.classes else None
    parts = [whole.taken(rows.numpy()) for rows in wish.hold_out.rows(len(whole.texts), whole.name, known, groups)]
    if targets.classes:
        _check_classes(parts, targets, wish)
    return parts


def _check_classes(parts: Sequence[Part], targets: Targets, wish: Wish) -> None:
    """Raise UserError if all samples of a class are held out."""
    counts = [np.bincount(part.targets, minlength=targets.outputs) for part in parts]
    lost = np.flatnonzero((counts[0] == 0) & (counts[1] > 0))
    if len(lost):
        names = shortened([targets.classes[number] for number in lost.tolist()])
        remedy = (
            "data.stratify: true, or another data.seed" if wish.hold_out.fold is None else "data.fold.kind: stratified"
        )
        raise UserError(
            f"{parts[0].name}: '{wish.target}': all rows of {names} are held out, so none is left for training; set "
            f"{remedy}"
        )


def _tokenizer(wish: Wish, train: Part, fitted: Fitted | None) -> Tokenizer:
    if fitted is not None:
        return saved.tokenizer(fitted["tokenizer"], wish.tokenizer)
    most = characters(wish.length)
    made: Tokenizer = wish.tokenizer.create(
        lambda: (text[:most] for row in train.usable for text in row), expected=Tokenizer
    )
    return made


def _cut(part: Part, cut: int, wish: Wish) -> list[str]:
    longest = max((sum(map(len, row)) for row in part.usable), default=0)
    if cut < MANY_CUT * len(part.texts) and longest < 1000 * wish.length:
        return []
    return [
        f"{part.name}: {cut} of {len(part.texts)} texts have more than data.length: {wish.length} tokens, the rest of which "
        f"is cut; the longest has {longest:,} characters"
    ] * bool(cut)


def _unknown(part: Part, ids: Array, tokenizer: Tokenizer) -> list[str]:
    unknown = tokenizer.unknown if isinstance(tokenizer, LibraryTokenizer) else None
    share = 0.0 if unknown is None or not len(ids) else float((ids == unknown).mean())
    return [
        f"{part.name}: {share:.0%} of the tokens are unknown to the tokenizer; expected one that was made for such texts"
    ] * (share > MANY_UNKNOWN)


def _of_targets(parts: Sequence[Part], targets: Targets, wish: Wish) -> list[str]:
    train, test = (torch.from_numpy(part.targets) for part in parts[:2])
    name = f"{parts[0].name}: '{wish.target}'"
    if not targets.classes:
        return target_warnings(train[:, None], test[:, None], 1, name)
    found = target_warnings(train, test, targets.outputs, name, targets.classes)
    if 2 * targets.outputs > len(train) > 2:
        found.append(
            f"{name}: {targets.outputs} classes among {len(train)} training rows, so most are learned from one text; "
            "expected a column of few labels"
        )
    return found


def _twice(parts: Sequence[Part]) -> list[str]:
    """Return a warning about held-out texts that are also training texts."""
    known = set(parts[0].usable)
    again = sum(row in known for row in parts[1].usable)
    return [
        f"{parts[1].name}: {again} of {len(parts[1].texts)} held-out texts are also training texts, so their metrics are "
        "better than those of new texts"
    ] * (again > MANY_CUT * len(parts[1].texts))

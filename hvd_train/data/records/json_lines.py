"""From files of JSON lines to a data set whose lines stay in the files."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.base import Dataset
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.mapped import MappedArray, MappedFile
from hvd_train.data.memory.node import Node
from hvd_train.data.memory.once import decoded
from hvd_train.data.records.fields import Fields, pick
from hvd_train.data.records.fit import Targets, Wanted, fit_targets, inexact_warnings, labels
from hvd_train.data.records.lines import Text, TextLines
from hvd_train.data.records.parse import parse_line
from hvd_train.data.records.sample_format import SampleFormat, Tokens, language_spec
from hvd_train.data.records.scan import Scan, scan
from hvd_train.data.records.values import Encode
from hvd_train.data.spec import DataSpec
from hvd_train.data.target_warnings import target_warnings
from hvd_train.data.tokenizing.base import Texts
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError

GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class JsonLines:
    """Samples of lines, of which `rows` are the numbers; None for all lines."""

    lines: TextLines
    rows: MappedArray | None
    classes: MappedArray
    form: SampleFormat
    name: str
    damage: str | None = None
    """The message for the first damaged line of the files."""

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.classes.values.copy())

    def item(self, index: int) -> Any:
        place = partial(self.lines.place, self._number(index))
        return self.form.sample(parse_line(self.lines.line(self._number(index)), place), place)

    def texts(self) -> Iterator[str]:
        """Yield the texts of the inputs of all samples that are not damaged."""
        for index in range(len(self)):
            with contextlib.suppress(UserError):
                record = parse_line(self.lines.line(self._number(index)), str)
                values = [pick(record, key, str) for key in self.form.fields.keys]
                yield from (value for value in values if isinstance(value, str))

    def _number(self, index: int) -> int:
        return index if self.rows is None else int(self.rows.values[index])


def open_texts(node: Node, files: Sequence[Path]) -> list[Text]:
    """Map the text of each file, which is decompressed once per host; collective."""
    return [Text(_content(node, file), str(file)) for file in files]


def _content(node: Node, path: Path) -> MappedArray:
    file = MappedFile(path)
    if bytes(file.memory[:2]) == GZIP:
        return decoded(node, lambda: np.frombuffer(_decompressed(path), np.uint8))
    return file.array(0, np.dtype(np.uint8), (file.size,))


def _decompressed(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file: {error}") from error


def prepared(
    groups: Sequence[Sequence[Text]],
    fields: Fields,
    task: Wanted,
    floats: bool,
    hold_out: HoldOut | None,
    fitted: Fitted | None = None,
) -> tuple[Mapping[str, Array], dict[str, Any]]:
    """Return the arrays and facts that the ranks of a host share.

    The first of `groups` are the training files. Without others, `hold_out` chooses held-out lines.
    """
    arrays: dict[str, Array] = {}
    counts, scans = [], []
    for number, texts in enumerate(groups):
        of_texts = [text.starts() for text in texts]
        arrays[f"starts {number}"] = np.concatenate(of_texts)
        counts.append([len(starts) for starts in of_texts])
        scans.append(_scanned(TextLines(texts, arrays[f"starts {number}"], counts[-1]), texts, fields))
    targets = Targets("value", "other", 0)
    if fields.target is not None:
        targets = fit_targets(scans, fields.target, task, fitted)
    of_groups = [labels(found, fields.target or "", targets) for found in scans]
    if hold_out is not None:
        known = of_groups[0] if targets.kind == "class" else None
        of_lines = None
        if hold_out.group is not None:
            of_lines = [*_values(TextLines(groups[0], arrays["starts 0"], counts[0]), hold_out.group)]
        train, test = hold_out.rows(len(of_groups[0]), groups[0][0].name, known, of_lines)
        arrays |= {"rows 0": train.numpy(), "rows 1": test.numpy()}
        of_groups = [of_groups[0][train], of_groups[0][test]]
    arrays |= {f"labels {number}": of.numpy() for number, of in enumerate(of_groups)}
    keys = frozenset(fields.keys) if floats else frozenset().union(*(found.floats for found in scans))
    if fitted is not None:
        keys = frozenset(fitted.get("input", {}).get("floats", keys))
    facts = {
        "counts": counts,
        "targets": [*targets],
        "floats": sorted(keys),
        "shape": scans[0].shapes.get(fields.keys[0]),
        "damage": [found.damage for found in scans],
        "warnings": []
        if fitted is not None
        else _warnings(scans, of_groups, targets, keys, f"{groups[0][0].name}: '{fields.target}'"),
    }
    return arrays, facts


def _scanned(lines: TextLines, texts: Sequence[Text], fields: Fields) -> Scan:
    """Return what is in `lines`; UserError if no line can be a sample."""
    if not len(lines):
        raise UserError(f"{', '.join(text.name for text in texts)}: no lines, expected one JSON object on each line")
    found = scan(range(len(lines)), lambda n, place: parse_line(lines.line(n), place), lines.place, fields)
    if found.damage and found.damaged == len(lines):
        raise UserError(found.damage)
    return found


def _values(lines: TextLines, key: str) -> Iterator[str]:
    """Yield the value of a key in each line as a text, empty for a damaged line; UserError without the key."""
    for number in range(len(lines)):
        place = partial(lines.place, number)
        try:
            record = parse_line(lines.line(number), place)
        except UserError:
            yield ""
            continue
        yield str(pick(record, key, place))


def _warnings(
    scans: Sequence[Scan], of_groups: Sequence[Tensor], targets: Targets, floats: frozenset[str], name: str
) -> list[str]:
    inexact = [text for found in scans for text in inexact_warnings(found, floats)]
    if targets.kind == "class":
        return [*inexact, *target_warnings(of_groups[0], of_groups[1], targets.outputs, name, targets.classes)]
    return inexact


def dataset(
    groups: Sequence[Sequence[Text]],
    fields: Fields,
    arrays: Mapping[str, MappedArray],
    facts: Mapping[str, Any],
    held_out: Sequence[str],
    encoder: Callable[[Texts], Encode],
) -> Dataset:
    """Return the samples of `groups`, of which `prepared` returned `arrays` and `facts`.

    `held_out` has the names of the groups after the first; it is empty if lines of the first are
    held out. `encoder` returns what encodes texts, given the training texts.
    """
    group_of_split = range(len(groups)) if held_out else (0, 0)
    lines = [TextLines(texts, arrays[f"starts {i}"], facts["counts"][i]) for i, texts in enumerate(groups)]
    splits = [
        JsonLines(
            lines[group],
            arrays.get(f"rows {number}"),
            arrays[f"labels {number}"],
            SampleFormat(fields),
            groups[group][0].name,
            facts["damage"][group],
        )
        for number, group in enumerate(group_of_split)
    ]
    targets = Targets(*facts["targets"])
    form = _form(fields, targets, frozenset(facts["floats"]), encoder(splits[0].texts))
    splits = [replace(split, form=form) for split in splits]
    others = dict(zip(held_out[1:], splits[2:], strict=True))
    return Dataset(
        splits[0],
        splits[1],
        _spec(form, targets, facts["shape"]),
        tuple(facts["warnings"]),
        form.document,
        others,
        input=form.facts,
    )


def _form(fields: Fields, targets: Targets, floats: frozenset[str], encode: Encode) -> SampleFormat:
    predicts_tokens = fields.target is None and isinstance(fields.inputs, str) and isinstance(encode, Tokens)
    names = {name: number for number, name in enumerate(targets.classes)}
    return SampleFormat(fields, "next" if predicts_tokens else targets.kind, names, floats, encode)


def _spec(form: SampleFormat, targets: Targets, shape: Sequence[int] | None) -> DataSpec:
    """Return the description of the samples; `shape` is that of the numbers of the first key."""
    if form.kind == "next" or targets.task == "language":
        return language_spec(form.encode)
    single = isinstance(form.fields.inputs, str) and shape is not None
    return DataSpec(tuple(shape or (1,)) if single else (), targets.outputs, targets.task)

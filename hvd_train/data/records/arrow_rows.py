"""Rows of a data set of the library `datasets` as samples. Its Arrow files are mapped into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.files import import_extra
from hvd_train.data.memory.mapped import MappedArray
from hvd_train.data.records.decode import MediaDecoder, decode
from hvd_train.data.records.sample_format import SampleFormat
from hvd_train.data.records.shards import shuffled
from hvd_train.errors import UserError

Kinds = Mapping[str, str]
"""The extension for `decode` of each column of images or sounds."""


def undecoded(rows: Any) -> tuple[Any, Kinds]:
    """Return `rows` whose images and sounds stay bytes, and which columns these are."""
    datasets = import_extra("datasets", "huggingface")
    kinds = {datasets.Image: "png", datasets.Audio: "wav"}
    found = {name: kinds[type(of)] for name, of in (rows.features or {}).items() if type(of) in kinds}
    for name in found:
        rows = rows.cast_column(name, type(rows.features[name])(decode=False))
    return rows, found


@dataclass(frozen=True)
class RowDecoder:
    """Makes a sample of a row."""

    form: SampleFormat
    kinds: Kinds
    media: MediaDecoder

    @property
    def facts(self) -> dict[str, Any]:
        """How new rows are read, as JSON for `data.json`."""
        return {**self.form.facts, "media": self.media.document, "columns": dict(self.kinds)}

    def __call__(self, row: Mapping[str, Any], place: str) -> Any:
        """Return the sample; UserError, which begins with `place`, for a damaged one."""
        return self.form.sample(self.record(row, place), lambda: place)

    def record(self, row: Mapping[str, Any], place: str) -> Mapping[str, Any]:
        """Return the row with decoded images and sounds in the columns that are used."""
        used = {*self.form.fields.keys, self.form.fields.target}
        return {
            name: _decoded(value, self.kinds[name], f"{place}: '{name}'", self.media)
            if name in self.kinds and name in used
            else value
            for name, value in row.items()
        }


def _decoded(value: Any, kind: str, place: str, media: MediaDecoder) -> Any:
    if value is None:
        raise UserError(f"{place}: found null, expected a value")
    content = value["bytes"]
    if content is None:
        try:
            with open(value["path"], "rb") as file:
                content = file.read()
        except OSError as error:
            raise UserError(f"{place}: {value['path']} cannot be read: {error.strerror or error}") from error
    return decode(content, kind, place, media)


@dataclass(frozen=True)
class ArrowRows:
    """Samples of the rows of `table` with the numbers `rows`; of all rows if that is None."""

    table: Any
    decode: RowDecoder
    name: str
    rows: MappedArray | None = None
    classes: MappedArray | None = None
    damage: str | None = None
    """The message for the first row without a target."""

    def __len__(self) -> int:
        return len(self.table if self.rows is None else self.rows)

    @property
    def labels(self) -> Tensor:
        return (
            torch.tensor(-1).expand(len(self)) if self.classes is None else torch.from_numpy(self.classes.values.copy())
        )

    def item(self, index: int) -> Any:
        number = index if self.rows is None else int(self.rows.values[index])
        return self.decode(self.table[number], row_place(self.name, number))


def row_place(name: str, number: int) -> str:
    """Return the place of a row for messages."""
    return f"{name}: row {number} (from 0)"


@dataclass(frozen=True)
class ArrowStream:
    """Samples of an iterable data set.

    A part has whole shards if there are at least as many shards as parts, else every sample of its
    number modulo the parts. `buffer` is the number of samples among which the next one is drawn.
    """

    table: Any
    decode: RowDecoder
    buffer: int
    seed: int
    name: str

    def raw(self, part: int, parts: int, epoch: int) -> Iterator[tuple[str, Any]]:
        if self.table.num_shards >= parts:
            of_part = "" if parts == 1 else f" of part {part} of {parts}"
            rows: Iterator[tuple[int, Any]] = enumerate(self.table.shard(parts, part))
        else:
            of_part, rows = "", islice(enumerate(self.table), part, None, parts)
        placed = ((row_place(self.name, number) + of_part, row) for number, row in rows)
        return shuffled(placed, self.buffer, np.random.default_rng([self.seed, epoch, part])) if self.buffer else placed

    def sample(self, raw: tuple[str, Any]) -> Any:
        place, row = raw
        return self.decode(row, place)

"""Texts, or pairs of texts, that get a label: dicts of tokens with a mask, as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from hvd_train.data.records.fields import LABELS
from hvd_train.data.tables.endings import delimiter_of, suffix
from hvd_train.data.texts.encoder import TextEncoder, Texts
from hvd_train.data.texts.labelled import IDS, TYPES
from hvd_train.data.tokenizing import saved
from hvd_train.errors import UserError
from hvd_train.trained.input import NO_TARGET, Block, Form, Input, InputContext, Place, json_object, numbered
from hvd_train.trained.reading import lines, tables

ROWS = 64
"""Texts in a block. They are padded to the longest."""


class EncodedTexts(Input):
    """Encodes dicts with the columns of training; a text alone is enough for a single column."""

    def __init__(self, context: InputContext) -> None:
        facts = context.facts
        self._batch, self._options = context.batch, context.section.options
        self._columns: list[str] = facts["text"]
        tokenizer = saved.tokenizer(context.document["tokenizer"], self._options.get("tokenizer"))
        self._encoder = TextEncoder(tokenizer, facts["length"], len(self._columns) == 2)
        self._cut = 0

    def encode(self, records: Sequence[str | Mapping[str, Any]], place: Place = numbered) -> Any:
        """Return the batch of the records; UserError for one without a text."""
        rows = [self._texts(record, place(i)) for i, record in enumerate(records)]
        samples = []
        for i, made in enumerate(self._encoder(rows)):
            if not len(made.ids):
                raise UserError(f"{place(i)}: a text without tokens, expected at least one")
            self._cut += made.cut
            types = {TYPES: torch.as_tensor(made.types, dtype=torch.int64)} if self._encoder.pair else {}
            samples.append({IDS: torch.as_tensor(made.ids, dtype=torch.int64), **types, LABELS: NO_TARGET})
        return self._batch(samples)

    def blocks(self, paths: Sequence[str], keep: Sequence[str] = ()) -> Iterator[Block]:
        """Yield rows of tables, lines of JSON, and lines of text files and of stdin, each one text."""
        for path in paths:
            if path == lines.STDIN or suffix(path) == ".txt":
                if keep or self._encoder.pair:
                    raise UserError(f"{lines.name_of(path)}: lines have no columns; expected a table or JSON Lines")
                yield from _divided(lines.blocks([path], _line))
            else:
                options = {**self._options, "delimiter": self._options.get("delimiter") or delimiter_of(path)}
                kinds = dict.fromkeys(self._columns, "whole")
                yield from _divided(tables.blocks([path], kinds, keep, options))

    def form(self) -> Form:
        """Return an object with the columns of training, which may be a text alone if there is one."""
        record = json_object("Texts", dict.fromkeys(self._columns, str))
        if self._encoder.pair:
            return Form(record)
        return Form(str | record, ("text/plain",), lambda body: _line(body, lambda: "the body"))

    def warnings(self) -> list[str]:
        return [f"{self._cut} texts have more than {self._encoder.length} tokens, the rest of which is cut"] * bool(
            self._cut
        )

    def _texts(self, record: str | Mapping[str, Any], place: str) -> Texts:
        named = {self._columns[0]: record} if isinstance(record, str) and not self._encoder.pair else record
        if not isinstance(named, Mapping):
            expected = ", ".join(f"'{column}'" for column in self._columns)
            raise UserError(f"{place}: found {type(record).__name__}, expected an object with {expected}")
        for column in self._columns:
            text = named.get(column)
            if not isinstance(text, str):
                found = "no value" if text is None else type(text).__name__
                raise UserError(f"{place}: found {found} at '{column}', expected a text")
            if not text.strip():
                raise UserError(f"{place}: an empty text at '{column}', expected one")
        return tuple(named[column] for column in self._columns)


def _line(line: bytes, place: Callable[[], str]) -> str:
    try:
        return line.rstrip(b"\r\n").decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{place()}: byte {error.start} is {line[error.start]:#04x}, expected text in UTF-8") from None


def _divided(blocks: Iterator[Block]) -> Iterator[Block]:
    """Yield the records of `blocks`, at most `ROWS` at a time."""
    for block in blocks:
        for start in range(0, len(block.records), ROWS):
            records = block.records[start : start + ROWS]
            rows = records if isinstance(records, list) else records.to_pylist()
            beside = {name: column[start : start + ROWS] for name, column in block.beside.items()}
            yield Block(rows, partial(_place, block.place, start), beside)


def _place(place: Place, start: int, number: int) -> str:
    return place(start + number)


def create(context: InputContext) -> EncodedTexts:
    return EncodedTexts(context)

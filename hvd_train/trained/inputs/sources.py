"""Texts for an encoder-decoder model: a column of a table, or lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvd_train.data.tables.endings import COMMAS, LINES, delimiter_of, suffix
from hvd_train.data.tokenizing import saved
from hvd_train.data.tokenizing.texts import decoded
from hvd_train.errors import UserError
from hvd_train.trained.input import Block, Form, Input, InputContext, Place, numbered
from hvd_train.trained.reading import arrow, csv, lines


class Sources(Input):
    """Encodes texts, as tokens with the one that ends a text. Texts that are too long are cut, as in training."""

    def __init__(self, context: InputContext) -> None:
        facts = context.document["tokenizer"]
        self._tokenizer = saved.tokenizer(facts, context.section.options.get("tokenizer"))
        self._end = facts["end"]
        self._column, self._length = context.facts["column"], context.facts["length"]
        self._delimiter = context.section.options.get("delimiter")
        self._cut = 0

    def encode(self, records: Sequence[Any], place: Place = numbered) -> list[Tensor]:
        """Return the tokens of each text, int64 `(n,)`; UserError for one that is empty or no text."""
        texts = [self._text(record, place(i)) for i, record in enumerate(records)]
        found = []
        for i, tokens in enumerate(self._tokenizer.encode(texts)):
            if not len(tokens):
                raise UserError(f"{place(i)}: an empty text, expected at least one token")
            self._cut += len(tokens) >= self._length
            found.append(torch.from_numpy(np.append(np.asarray(tokens, np.int64)[: self._length - 1], self._end)))
        return found

    def blocks(self, paths: Sequence[str], keep: Sequence[str] = ()) -> Iterator[Block]:
        """Yield the texts of tables and of JSON Lines in the column of training, and lines of other files."""
        for path in paths:
            ending = suffix(path)
            if ending in LINES:
                yield from (self._at_key(lines.keep(block, keep)) for block in lines.json_blocks([path]))
            elif ending in arrow.SUFFIXES:
                yield from map(self._of_table, arrow.blocks(path, [self._column], keep))
            elif ending in COMMAS:
                delimiter = self._delimiter or delimiter_of(path)
                yield from map(self._of_table, csv.blocks(path, {self._column: "whole"}, keep, delimiter))
            elif keep:
                raise UserError(f"--keep: lines of a text have no column '{keep[0]}'")
            else:
                yield from lines.blocks([path], lambda line, place: decoded(line.rstrip(b"\r\n"), place()))

    def form(self) -> Form:
        """Return a text."""
        return Form(str, ("text/plain",), lambda body: decoded(body, "the body"))

    def warnings(self) -> Iterator[str]:
        if self._cut:
            yield f"{self._cut:,} texts are cut to the {self._length} tokens of training (data.length)"

    def _text(self, record: Any, place: str) -> str:
        if not isinstance(record, str):
            raise UserError(f"{place}: found {type(record).__name__}, expected a text")
        if not record.strip():
            raise UserError(f"{place}: an empty text, expected words")
        return record

    def _of_table(self, block: Block) -> Block:
        texts = block.records.column(block.records.schema.get_field_index(self._column)).to_pylist()
        return Block(["" if text is None else text for text in texts], block.place, block.beside)

    def _at_key(self, block: Block) -> Block:
        texts = [record.get(self._column) if isinstance(record, dict) else record for record in block.records]
        for i, text in enumerate(texts):
            if text is None:
                raise UserError(f"{block.place(i)}: no text at '{self._column}'")
        return Block(texts, block.place, block.beside)


def create(context: InputContext) -> Sources:
    return Sources(context)

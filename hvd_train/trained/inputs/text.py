"""Texts for a language model, as tokens of the tokenizer of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import FailFast, Field
from torch import Tensor

from hvd_train.data.tables.endings import LINES, suffix
from hvd_train.data.tokenizing import saved
from hvd_train.errors import UserError
from hvd_train.trained.input import Block, Form, Input, InputContext, Place, numbered
from hvd_train.trained.reading import lines

KEY = "text"
"""The key of the text in JSON Lines."""


class Text(Input):
    """Encodes each text alone. Without a known tokenizer, records are lists of tokens."""

    def __init__(self, context: InputContext) -> None:
        facts = saved.described(context.document, context.spec)
        section = context.section.options.get("tokenizer")
        self._tokenizer = saved.tokenizer(facts, section) if facts else None
        self._vocabulary = context.spec.outputs

    def encode(self, records: Sequence[str | list[int]], place: Place = numbered) -> list[Tensor]:
        """Return the tokens of each record, int64 `(n,)`; UserError for an empty one."""
        found = [self._tokens(record, place(i)) for i, record in enumerate(records)]
        for i, tokens in enumerate(found):
            if not len(tokens):
                raise UserError(f"{place(i)}: an empty text, expected at least one token")
        return found

    def blocks(self, paths: Sequence[str], keep: Sequence[str] = ()) -> Iterator[Block]:
        """Yield lines of text files and of stdin, and texts of JSON Lines at the key `text`."""
        for path in paths:
            if suffix(path) in LINES:
                yield from (_at_key(lines.keep(block, keep)) for block in lines.json_blocks([path]))
            elif keep:
                raise UserError(f"--keep: lines of a text have no column '{keep[0]}'")
            else:
                yield from lines.blocks([path], self._line)

    def form(self) -> Form:
        """Return a text, or a list of tokens without a tokenizer."""
        if self._tokenizer is None:
            return Form(Annotated[list[Annotated[int, Field(ge=0, lt=self._vocabulary)]], FailFast()])
        return Form(str, ("text/plain",), lambda body: _decoded(body, lambda: "the body"))

    def _tokens(self, record: Any, place: str) -> Tensor:
        if isinstance(record, str) and self._tokenizer is not None:
            (tokens,) = self._tokenizer.encode([record])
        elif isinstance(record, list) and all(isinstance(t, int) and 0 <= t < self._vocabulary for t in record):
            tokens = record
        else:
            expected = "a text" if self._tokenizer is not None else f"a list of tokens below {self._vocabulary}"
            raise UserError(f"{place}: found {type(record).__name__}, expected {expected}")
        return torch.from_numpy(np.asarray(tokens, np.int64))

    def _line(self, line: bytes, place: Callable[[], str]) -> Any:
        text = _decoded(line.rstrip(b"\r\n"), place)
        if self._tokenizer is not None:
            return text
        words = text.split()
        return [int(word) for word in words] if all(map(str.isdecimal, words)) else text


def _decoded(line: bytes, place: Callable[[], str]) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{place()}: byte {error.start} is {line[error.start]:#04x}, expected text in UTF-8") from None


def _at_key(block: Block) -> Block:
    for i, record in enumerate(block.records):
        if not isinstance(record, dict | str | list) or (isinstance(record, dict) and KEY not in record):
            raise UserError(f"{block.place(i)}: no text at '{KEY}'")
    texts = [record[KEY] if isinstance(record, dict) else record for record in block.records]
    return Block(texts, block.place, block.beside)


def create(context: InputContext) -> Text:
    return Text(context)

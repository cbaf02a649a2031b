"""Read texts in pieces, and encode them with bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np

from hvd_train.data.tokenizing.base import Tokenizer
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError

PIECE = 2**16
"""Bytes that are read of a long text at once. A piece has at most twice as many."""
BATCH = 2**20
"""Characters that are encoded at once. The library divides a batch among the processors."""

Document = Iterable[str]
"""The pieces of one document."""


def pieces(file: IO[bytes], name: str, size: int | None = None) -> Iterator[str]:
    """Yield the text of `file` from its position on, or `size` bytes of it, in pieces.

    Raise UserError, which names the byte, for text that is not UTF-8.
    """
    rest, position, left = b"", file.tell(), size
    while block := file.read(PIECE if left is None else min(PIECE, left)):
        left = None if left is None else left - len(block)
        rest += block
        if len(rest) > PIECE:  # a text of one piece is not cut
            end = cut(rest)
            yield decoded(rest[:end], name, position)
            rest, position = rest[end:], position + end
    if rest:
        yield decoded(rest, name, position)


def cut(data: bytes) -> int:
    """Return the length of the largest part of `data` after which a text can be divided.

    It ends before a line break or a space between two words, where tokenizers divide texts too. A
    text without any is divided between two characters.
    """
    for space in (b"\n", b" "):
        at = data.rfind(space, 1, len(data) - 1)
        while at > 0:
            if not data[at - 1 : at].isspace() and not data[at + 1 : at + 2].isspace():
                return at
            at = data.rfind(space, 1, at)
    return whole_characters(data)


def whole_characters(data: bytes) -> int:
    """Return the length of `data` without a character of UTF-8 that is not complete at its end."""
    for back in range(1, min(4, len(data)) + 1):
        lead = data[-back]
        if lead >= 0xC0:
            length = 2 + (lead >= 0xE0) + (lead >= 0xF0)
            return len(data) if back >= length else len(data) - back
        if lead < 0x80:
            break
    return len(data)


def decoded(data: bytes, name: str, position: int = 0) -> str:
    """Return `data`, which begins at byte `position` of `name`, as text; UserError if it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: byte {position + error.start} is {data[error.start]:#04x}, expected text in UTF-8; convert the file, "
            "or take the tokenizer bytes"
        ) from error


def encoded(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[Array]:
    """Yield the tokens of `documents`, in pieces. The end token follows each one that is not empty.

    Raise UserError for a token that is not below the vocabulary.
    """
    dtype = dtype_of(tokenizer.vocabulary)
    ends = np.array([] if tokenizer.end is None else [tokenizer.end], dtype)
    for batch in _batches(documents):
        of_texts = iter(tokenizer.encode([text for text in batch if text is not None]))
        tokens = np.concatenate([ends if text is None else np.asarray(next(of_texts), np.int64) for text in batch])
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < tokenizer.vocabulary:
            wrong = next(token for token in tokens.tolist() if not 0 <= token < tokenizer.vocabulary)
            raise UserError(f"tokenizer: found the token {wrong}, expected numbers below {tokenizer.vocabulary}")
        yield tokens.astype(dtype)


def _batches(documents: Iterable[Document]) -> Iterator[list[str | None]]:
    """Yield the pieces of `documents` in lists of about `BATCH` characters; None ends a document."""
    batch: list[str | None] = []
    size = 0
    for document in documents:
        is_empty = True
        for piece in document:
            batch.append(piece)
            size, is_empty = size + len(piece), False
            if size >= BATCH:
                yield batch
                batch, size = [], 0
        if not is_empty:
            batch.append(None)
    if batch:
        yield batch


def dtype_of(vocabulary: int) -> type[np.uint16] | type[np.uint32]:
    """Return the type of the numbers below `vocabulary`."""
    return np.uint16 if vocabulary <= 2**16 else np.uint32

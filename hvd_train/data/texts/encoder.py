"""Make the tokens of texts and of pairs of texts, with special tokens and at most as many as wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from hvd_train.data.tokenizing.base import Tokenizer
from hvd_train.data.tokenizing.library import LibraryTokenizer, Sample
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError

Texts = tuple[str, ...]
"""A text, or a pair of texts."""

CHARACTERS = 32
"""Characters that are read for each token. The tokens of a longer text are cut anyway."""
FEWEST = 2**14
"""Characters of a text that are read at least."""
BATCH = 4096
"""Rows that are encoded at once."""


@dataclass(frozen=True)
class TextEncoder:
    """Makes at most `length` tokens of each text or pair of texts.

    Special tokens are those that the file of the tokenizer names. Without them, the token that ends a
    document separates two texts. Raise UserError for pairs if there is none, and for a `length` that
    special tokens fill.
    """

    tokenizer: Tokenizer
    length: int
    pair: bool

    def __post_init__(self) -> None:
        if self.pair and not self._special and self.tokenizer.end is None:
            raise UserError(
                "data.tokenizer: no token separates two texts; expected a tokenizer that has one, such as bpe or the file of "
                "a BERT"
            )
        if self.length <= self._special:
            raise UserError(
                f"data.length: {self.length}, expected more than the {self._special} special tokens of a text"
            )

    @property
    def pad(self) -> int:
        """The token that fills up short texts, which a mask hides: the tokenizer's own, its end token, or 0."""
        own = getattr(self.tokenizer, "pad", None)
        return next((token for token in (own, self.tokenizer.end) if token is not None), 0)

    def __call__(self, rows: Sequence[Texts]) -> Iterator[Sample]:
        """Yield the tokens of `rows`, in order."""
        most = characters(self.length)
        for start in range(0, len(rows), BATCH):
            whole = rows[start : start + BATCH]
            short = [tuple(text[:most] for text in row) for row in whole]
            for row, sample in zip(whole, self._samples(short), strict=True):
                is_longer = any(len(text) > most for text in row)
                yield sample._replace(cut=True) if is_longer else sample

    def _samples(self, rows: Sequence[Texts]) -> Iterator[Sample]:
        if isinstance(self.tokenizer, LibraryTokenizer) and (self._special or not self.pair):
            return self.tokenizer.samples(rows, self.length)
        return self._pairs(rows) if self.pair else self._singles(rows)

    @property
    def _special(self) -> int:
        return self.tokenizer.special(pair=self.pair) if isinstance(self.tokenizer, LibraryTokenizer) else 0

    def _singles(self, rows: Sequence[Texts]) -> Iterator[Sample]:
        for tokens in self.tokenizer.encode([text for (text,) in rows]):
            ids = np.asarray(tokens[: self.length], np.int64)
            yield Sample(ids, np.zeros_like(ids), len(tokens) > self.length)

    def _pairs(self, rows: Sequence[Texts]) -> Iterator[Sample]:
        tokens = iter(self.tokenizer.encode([*chain.from_iterable(rows)]))
        for first, second in zip(tokens, tokens, strict=True):
            sizes = shares(len(first), len(second), self.length - 1)
            parts = [np.asarray(part[:size], np.int64) for part, size in zip((first, second), sizes, strict=True)]
            ids: Array = np.concatenate([parts[0], [self.tokenizer.end], parts[1]]).astype(np.int64)
            types = (np.arange(len(ids)) > sizes[0]).astype(np.int64)
            yield Sample(ids, types, sizes != (len(first), len(second)))


def characters(length: int) -> int:
    """Return how many characters of a text are read for `length` tokens: time is then bounded."""
    return max(FEWEST, CHARACTERS * length)


def shares(first: int, second: int, length: int) -> tuple[int, int]:
    """Return how many of `first` and `second` tokens fit into `length`: the longer text is cut first."""
    kept = min(first, max(length - second, (length + 1) // 2))
    return kept, min(second, length - kept)

"""Tokenizers of the library `tokenizers`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hvd_train.errors import UserError, nearest

if TYPE_CHECKING:
    import tokenizers

EXTRA = "text"
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""Names of tokens that end a document. The first one that a vocabulary has counts."""


class LibraryTokenizer:
    """A tokenizer of the library, with the number `end` of the token that ends a document."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, end: int | None) -> None:
        self._tokenizer, self.end = tokenizer, end
        self.vocabulary = max(tokenizer.get_vocab().values()) + 1  # numbers may have gaps

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [one.ids for one in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def describe(self) -> dict[str, Any]:
        """Return the JSON text of the library, after its digest: the first difference is short."""
        text = self._tokenizer.to_str()
        return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "json": text}


def end_of(tokenizer: tokenizers.Tokenizer, name: str | None, where: str) -> int | None:
    """Return the number of the token `name`, by default of the first of `ENDS`; None without one.

    Raise UserError if the vocabulary has no token `name`.
    """
    if name is None:
        return next((tokenizer.token_to_id(word) for word in ENDS if tokenizer.token_to_id(word) is not None), None)
    number: int | None = tokenizer.token_to_id(name)
    if number is None:
        raise UserError(f"{where}: no token '{name}' in the vocabulary{nearest(name, tokenizer.get_vocab())}")
    return number

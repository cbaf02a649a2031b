"""Tokenizers of the library `tokenizers`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError, nearest

if TYPE_CHECKING:
    import tokenizers

EXTRA = "text"
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""Names of tokens that end a document. The first one that a vocabulary has counts."""
PADS = ("[PAD]", "<pad>", "<PAD>", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>")
"""Names of tokens that fill up short texts. The first one that a vocabulary has counts."""


class Sample(NamedTuple):
    """The tokens of a text, or of a pair of texts."""

    ids: Sequence[int] | Array
    types: Sequence[int] | Array
    """The number of the text, 0 or 1, that each token counts to."""
    cut: bool
    """True if the text has more tokens."""


class LibraryTokenizer:
    """A tokenizer of the library, with the number `end` of the token that ends a document."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, end: int | None) -> None:
        self._tokenizer, self.end = tokenizer, end
        self.vocabulary = max(tokenizer.get_vocab().values()) + 1  # numbers may have gaps

    @property
    def pad(self) -> int | None:
        """The token that fills up short texts; None without one."""
        return next((number for name in PADS if (number := self._tokenizer.token_to_id(name)) is not None), None)

    @property
    def unknown(self) -> int | None:
        """The token that stands for what the vocabulary does not have; None without one."""
        name = getattr(self._tokenizer.model, "unk_token", None)
        return None if name is None else self._tokenizer.token_to_id(name)

    def special(self, *, pair: bool) -> int:
        """Return the number of special tokens, such as [CLS], around a text or around two."""
        return int(self._tokenizer.num_special_tokens_to_add(pair))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [one.ids for one in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def number(self, token: str, where: str) -> int:
        """Return the number of `token`; UserError, which begins with `where`, if there is none."""
        found = end_of(self._tokenizer, token, where)
        assert found is not None
        return found

    def samples(self, texts: Sequence[tuple[str, ...]], length: int) -> Iterator[Sample]:
        """Yield the tokens of each text or pair of texts with the special tokens, at most `length`.

        A pair loses the last tokens of its longer text first.
        """
        limited = type(self._tokenizer).from_str(self._tokenizer.to_str())
        limited.enable_truncation(length, strategy="longest_first")
        for one in limited.encode_batch([t[0] if len(t) == 1 else t for t in texts]):
            yield Sample(one.ids, one.type_ids, bool(one.overflowing))

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

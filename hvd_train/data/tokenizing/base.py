"""The contract of a tokenizer: it turns texts into numbers.

A tokenizer is a file in `hvd_train/data/tokenizers` whose `create(texts, **options)` returns a
`Tokenizer`. `texts` returns an iterator over pieces of the training text, for a tokenizer that
learns from them; others leave the parameter out. Equal texts and options give equal tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from hvd_train.data.value_checks import Array

Texts = Callable[[], Iterator[str]]
"""Returns the pieces of the training text, from the beginning at each call."""


@runtime_checkable
class Tokenizer(Protocol):
    """Turns texts into tokens, which are integers below `vocabulary`."""

    vocabulary: int
    end: int | None
    """The token that ends a document; None: documents follow each other without one."""

    def encode(self, texts: Sequence[str]) -> Sequence[Sequence[int] | Array]:
        """Return the tokens of each of `texts`, without special tokens around them."""


@runtime_checkable
class Described(Protocol):
    """A tokenizer that the run folder keeps."""

    def describe(self) -> dict[str, Any]:
        """Return JSON from which the tokenizer can be made again."""


def describe(name: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what the run folder, or a file beside tokens, says of the tokenizer `name`, as JSON."""
    own = tokenizer.describe() if isinstance(tokenizer, Described) else {}
    return {"name": name, "vocabulary": tokenizer.vocabulary, "end": tokenizer.end, **own}

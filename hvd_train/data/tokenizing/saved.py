"""The tokenizer that `data.json` of a run folder describes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from hvd_train.config.tokenizer_section import TokenizerSection
from hvd_train.data.files import import_extra
from hvd_train.data.spec import DataSpec
from hvd_train.data.tokenizers.bytes import VOCABULARY, Bytes
from hvd_train.data.tokenizing.base import Tokenizer
from hvd_train.data.tokenizing.library import EXTRA, LibraryTokenizer
from hvd_train.errors import UserError

Decode = Callable[[list[int]], str]
"""Makes a text of tokens."""


def described(document: Mapping[str, Any], spec: DataSpec) -> Mapping[str, Any]:
    """Return what `data.json` says of the tokenizer; empty if the tokenizer is not known.

    A source of bytes describes none.
    """
    is_bytes = spec.task == "language" and spec.outputs == VOCABULARY
    found: Mapping[str, Any] = document.get("tokenizer", {"name": "bytes"} if is_bytes else {})
    return found


def tokenizer(facts: Mapping[str, Any], section: TokenizerSection | None) -> Tokenizer:
    """Return the tokenizer that `facts` describe.

    `section` makes one that is the user's own. Raise UserError if it learns from the training text.
    """
    if facts.get("name") == "bytes":
        return Bytes()
    if "json" in facts:
        library = import_extra("tokenizers", EXTRA)
        return LibraryTokenizer(library.Tokenizer.from_str(facts["json"]), facts["end"])
    if section is None:
        raise UserError("data.json of the run describes no tokenizer; expected tokens as lists of integers")
    made: Tokenizer = section.create(_no_texts, expected=Tokenizer)
    return made


def decoder(facts: Mapping[str, Any]) -> Decode | None:
    """Return the function from tokens to a text; None if the tokenizer is not known."""
    if "json" in facts and find_spec("tokenizers"):
        read = import_extra("tokenizers", EXTRA).Tokenizer.from_str(facts["json"])
        return lambda tokens: str(read.decode([t for t in tokens if t >= 0], skip_special_tokens=False))
    if facts.get("name") == "bytes":
        return lambda tokens: bytes(t for t in tokens if 0 <= t < VOCABULARY).decode(errors="replace")
    return None


def _no_texts() -> Iterator[str]:
    raise UserError(
        "the tokenizer of the run is your own and learns from the training text, which is not in the run folder; take bpe, "
        "or save the tokenizer as a file of the library tokenizers (data.tokenizer: file)"
    )

"""From pairs of texts to the arrays that the ranks of a host share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hvd_train.config.options import TokenizerSection
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.mapped import MappedArray
from hvd_train.data.pairs.items import PairItems, Ragged, ragged
from hvd_train.data.pairs.reading import Columns, Pairs, of_lengths, read, without_doubles
from hvd_train.data.tokenizing import saved
from hvd_train.data.tokenizing.base import Tokenizer, describe
from hvd_train.data.tokenizing.library import LibraryTokenizer
from hvd_train.data.tokenizing.texts import dtype_of
from hvd_train.data.value_checks import Array
from hvd_train.errors import UserError
from hvd_train.text import strict_json

SIDES = ("source", "target")


@dataclass(frozen=True)
class PairOptions:
    """How files of pairs become samples."""

    columns: Columns
    tokenizer: TokenizerSection
    begin: str | None
    length: int
    fewest_words: int
    most_words: int | None
    test_rows: Mapping[str, Any] | None
    hold_out: HoldOut


def prepared(
    files: Sequence[Sequence[Path]], options: PairOptions, fitted: Fitted | None
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays and the facts of training pairs and of each set of held-out pairs.

    The first of `files` have the training pairs. Without others, a part of the pairs is held out.
    """
    splits, warnings = _splits(files, options)
    tokenizer = _tokenizer(splits[0], options.tokenizer, fitted)
    arrays: dict[str, Array] = {}
    for number, pairs in enumerate(splits):
        of_sides = [_encoded(getattr(pairs, f"{side}s"), tokenizer, pairs.name, side) for side in SIDES]
        for side, tokens in zip(SIDES, of_sides, strict=True):
            cut = [row[: options.length - 1] for row in tokens]
            arrays |= ragged(f"{side} {number}", cut, dtype_of(tokenizer.vocabulary))
            texts = [np.frombuffer(text.encode(), np.uint8) for text in getattr(pairs, f"{side}s")]
            arrays |= ragged(f"{side} texts {number}", texts, np.uint8)
        warnings += _cut(pairs.name, of_sides, options.length)
    facts = {
        "names": [pairs.name for pairs in splits],
        "tokenizer": describe(options.tokenizer.label, tokenizer),
        "begin": _begin(tokenizer, options),
        "digest": _digest(splits[0]),
        "warnings": [] if fitted is not None else warnings,
    }
    return arrays, facts


def items(number: int, arrays: Mapping[str, MappedArray], facts: Mapping[str, Any]) -> PairItems:
    """Return split `number` of what `prepared` returned."""

    def rows(name: str) -> Ragged:
        return Ragged(arrays[f"{name} {number} values"], arrays[f"{name} {number} ends"])

    return PairItems(
        facts["names"][number],
        rows("source"),
        rows("target"),
        rows("source texts"),
        rows("target texts"),
        facts["begin"],
        facts["tokenizer"]["end"],
    )


def _splits(files: Sequence[Sequence[Path]], options: PairOptions) -> tuple[list[Pairs], list[str]]:
    """Return the training pairs and each set of held-out ones, and warnings."""
    mark = options.hold_out.group
    if options.test_rows and len(files) == 1:
        mark = next(iter(options.test_rows))
    every = [read(group, options.columns, mark) for group in files]
    every = [of_lengths(pairs, options.fewest_words, options.most_words) for pairs in every]
    train, warnings = without_doubles(every[0]), []
    if len(train.sources) < len(every[0].sources):
        doubles = len(every[0].sources) - len(train.sources)
        warnings.append(f"{train.name}: {doubles:,} pairs stand there more than once; each one is used once")
    splits = [train, *every[1:]] if len(files) > 1 else _divided(train, options)
    if not len(splits[0].sources):
        raise UserError(f"{train.name}: no pair has from {options.fewest_words} to {options.most_words} words")
    known = set(zip(splits[0].sources, splits[0].targets, strict=True))
    for pairs in splits[1:]:
        both = sum(pair in known for pair in zip(pairs.sources, pairs.targets, strict=True))
        if both:
            warnings.append(
                f"{pairs.name}: {both:,} of {len(pairs.sources):,} held-out pairs are training pairs too, which flatters "
                "the metrics"
            )
    return splits, warnings


def _divided(pairs: Pairs, options: PairOptions) -> list[Pairs]:
    """Return the training pairs and the held-out ones: those with a value in a column, or random ones."""
    if options.test_rows is None:
        groups = None if options.hold_out.group is None else [*map(str, pairs.marks)]
        parts = options.hold_out.rows(len(pairs.sources), pairs.name, groups=groups)
        return [pairs.chosen(part.tolist()) for part in parts]
    mark, value = next(iter(options.test_rows.items()))
    is_test = [str(one) == str(value) for one in pairs.marks]
    if not any(is_test) or all(is_test):
        which = "every" if all(is_test) else "no"
        raise UserError(f"data.test_rows: {which} row of {pairs.name} has '{value}' in column '{mark}'")
    return [pairs.chosen([i for i, held in enumerate(is_test) if held is wanted]) for wanted in (False, True)]


def _tokenizer(train: Pairs, section: TokenizerSection, fitted: Fitted | None) -> Tokenizer:
    """Return the tokenizer of both sides; UserError if it has no token that ends a text."""
    if fitted is not None:
        return saved.tokenizer(fitted["tokenizer"], section)
    made: Tokenizer = section.create(partial(_both, train), expected=Tokenizer)
    if made.end is None:
        raise UserError(
            f"data.tokenizer: '{section.label}' has no token that ends a text, by which a model ends its answer; take bpe, or "
            "a file with such a token (data.tokenizer.end)"
        )
    return made


def _digest(pairs: Pairs) -> str:
    """Return a text that tells whether other pairs are the same ones."""
    texts = strict_json.dumps([pairs.sources, pairs.targets])
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def _both(pairs: Pairs) -> Iterator[str]:
    return chain(pairs.sources, pairs.targets)


def _begin(tokenizer: Tokenizer, options: PairOptions) -> int:
    """Return the number of the token that the decoder gets first."""
    assert tokenizer.end is not None
    if options.begin is None:
        return tokenizer.end
    if not isinstance(tokenizer, LibraryTokenizer):
        raise UserError("data.begin: the tokenizer names no tokens; leave it out")
    return tokenizer.number(options.begin, "data.begin")


def _encoded(texts: Sequence[str], tokenizer: Tokenizer, name: str, side: str) -> list[Array]:
    """Return the tokens of each text; UserError for a text of which the tokenizer leaves nothing."""
    found = [np.asarray(tokens, np.int64) for tokens in tokenizer.encode(texts)] if texts else []
    empty = next((text for text, tokens in zip(texts, found, strict=True) if not len(tokens)), None)
    if empty is not None:
        raise UserError(f"{name}: the tokenizer leaves no token of the {side} {empty[:20]!r}; take another tokenizer")
    return found


def _cut(name: str, of_sides: Sequence[Sequence[Array]], length: int) -> list[str]:
    """Return a warning if texts are longer than `length` tokens with the one that ends them."""
    numbers = [sum(len(row) >= length for row in rows) for rows in of_sides]
    if not any(numbers):
        return []
    longest = 1 + max(len(row) for rows in of_sides for row in rows)
    return [
        f"{name}: {numbers[0]:,} sources and {numbers[1]:,} targets are cut to {length} tokens; the longest has {longest} "
        "(data.length)"
    ]

"""Pairs of texts, such as sentences and their translations: two columns of a table, or two files."""

from __future__ import annotations

from functools import partial
from typing import Any

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import (
    Annotated,
    Field,
    Fraction,
    HeldOutSeed,
    PositiveInt,
    TokenizerSection,
)
from hvd_train.data.base import Dataset
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.memory.once import once
from hvd_train.data.pairs.prepare import PairOptions, items, prepared
from hvd_train.data.pairs.reading import Columns, files_of, named
from hvd_train.data.spec import DataSpec

PAD = {"value": 0.0}
"""Options of the collate function: padding is masked, and counts nothing in `labels`."""


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    path: Annotated[
        str | Annotated[list[str], Field(min_length=2, max_length=2)],
        "table with a row for each pair (.csv, .tsv, .jsonl, .parquet, .arrow); or [source, target]: two text files, in which "
        "line i of one is the translation of line i of the other",
    ],
    source_column: Annotated[str, "column of the text to translate"] = "source",
    target_column: Annotated[str, "column of its translation"] = "target",
    delimiter: Annotated[
        str | None, "character between two values; by default a comma in .csv and a tab in .tsv files"
    ] = None,
    tokenizer: Annotated[
        TokenizerSection | None,
        "how texts of both sides become tokens, by default bpe, which learns from both (ddl list tokenizers)",
    ] = None,
    begin: Annotated[
        str | None,
        "token that the decoder gets first, such as <pad> for T5 and Marian; by default the one that ends a text",
    ] = None,
    length: Annotated[
        Annotated[int, Field(ge=2)], "most tokens of a text, with the one that ends it; longer texts are cut"
    ] = 128,
    min_words: Annotated[PositiveInt, "pairs with fewer words on one side are left out"] = 1,
    max_words: Annotated[PositiveInt | None, "pairs with more words on one side are left out"] = None,
    test_path: Annotated[
        str | list[str] | dict[str, str | list[str]] | None,
        "held-out pairs, as in path; a table: names of held-out sets and their files, the first is the main one",
    ] = None,
    test_rows: Annotated[
        Annotated[dict[str, Any], Field(min_length=1, max_length=1)] | None,
        "column and value of the rows that are held out without test_path, as in {package: sphinx}",
    ] = None,
    test_fraction: Annotated[
        Fraction, "fraction of the pairs that is held out at random without test_path and test_rows"
    ] = 0.1,
    seed: HeldOutSeed = 0,
) -> Dataset:
    """Return dicts of int64 `input_ids`, `attention_mask`, `decoder_input_ids` and `labels`; collective.

    Tokens are made once per host. A pair that stands twice among the training pairs is used once. Raise
    UserError for a missing column, for files with unequal numbers of lines, and for an empty text.
    """
    section = tokenizer or TokenizerSection(name="bpe")
    columns, hold_out = Columns(source_column, target_column, delimiter), HoldOut(test_fraction, seed, fold)
    options = PairOptions(columns, section, begin, length, min_words, max_words, test_rows, hold_out)
    tests = named(test_path)
    files = [files_of(path, "path"), *(files_of(paths, "test_path") for paths in tests.values())]
    arrays, facts = once(node, partial(prepared, files, options, fitted))
    splits = [items(number, arrays, facts) for number in range(len(facts["names"]))]
    others = dict(zip([*tests][1:], splits[2:], strict=True))
    vocabulary = facts["tokenizer"]["vocabulary"]
    return Dataset(
        splits[0],
        splits[1],
        DataSpec(
            (length,), vocabulary, "seq2seq", vocabularies={"input_ids": vocabulary, "decoder_input_ids": vocabulary}
        ),
        tuple(facts["warnings"]),
        {"tokenizer": facts["tokenizer"]},
        others,
        input={
            "kind": "sources",
            "column": source_column,
            "length": length,
            "begin": facts["begin"],
            "digest": facts["digest"],
        },
        pad=PAD,
    )

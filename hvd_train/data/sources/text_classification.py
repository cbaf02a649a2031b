"""Texts, or pairs of texts, with a label: rows of CSV, TSV, JSON Lines, Parquet and Arrow files."""

from __future__ import annotations

from functools import partial

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import (
    Annotated,
    Field,
    HeldOutFraction,
    HeldOutSeed,
    LabelTask,
    PositiveInt,
    TestRows,
    TokenizerSection,
)
from hvd_train.data.base import Dataset
from hvd_train.data.files import find_file, test_files
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.memory.once import once
from hvd_train.data.texts.dataset import Wish, dataset, prepared


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    path: Annotated[str, "file whose ending says what it is: .csv, .tsv, .jsonl, .parquet or .arrow, perhaps with .gz"],
    text: Annotated[
        str | Annotated[list[str], Field(min_length=1, max_length=2)],
        "column of the texts; or two columns, whose texts make a pair, such as question and answer",
    ] = "text",
    target: Annotated[str, "column of the labels"] = "label",
    task: LabelTask = "auto",
    tokenizer: Annotated[
        TokenizerSection | None,
        "how texts become tokens, by default as the pretrained model reads them, or else by bpe, which learns from the training "
        "texts; file takes a tokenizer.json, whose special tokens stand around each text",
    ] = None,
    length: Annotated[
        PositiveInt, "most tokens of a text or a pair, special tokens included; longer ones are cut"
    ] = 128,
    delimiter: Annotated[
        Annotated[str, Field(min_length=1, max_length=1)] | None,
        "character between two values; by default a comma in .csv and a tab in .tsv",
    ] = None,
    test_path: TestRows = None,
    test_fraction: HeldOutFraction = 0.2,
    seed: HeldOutSeed = 0,
    stratify: Annotated[bool, "hold out the same fraction of each class"] = False,
) -> Dataset:
    """Return samples `{input_ids, labels}`, and `token_type_ids` of pairs; collective.

    Tokens are made once per host. Batches are padded to their longest text by the tokenizer's own
    token, and have an `attention_mask`. Classes are numbered in sorted order. Raise UserError for
    missing files and columns, labels of several kinds, and held-out labels that no training row has.
    A row without a text or a label is a damaged sample.
    """
    columns = [text] if isinstance(text, str) else text
    held_out = test_files(test_path)
    files = [(find_file(path, "path"), path), *((file, str(file)) for file in held_out.values())]
    wish = Wish(
        columns,
        target,
        task,
        tokenizer or TokenizerSection(name="bpe"),
        length,
        delimiter,
        HoldOut(test_fraction, seed, fold, stratify),
    )
    arrays, facts = once(node, partial(prepared, files, wish, fitted))
    return dataset(arrays, facts, wish, [*held_out] or ["test"])

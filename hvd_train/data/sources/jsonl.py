"""JSON Lines: one object on each line, plain or gzip. Keys are the inputs and the target."""

from __future__ import annotations

from functools import partial

from hvd_train.config.fold_section import FoldSection
from hvd_train.config.options import (
    Annotated,
    Field,
    HeldOutFraction,
    HeldOutSeed,
    Literal,
    RecordTask,
    TextLength,
    Tokenizer,
)
from hvd_train.data.base import Dataset
from hvd_train.data.fitted import Fitted
from hvd_train.data.hold_out import HoldOut
from hvd_train.data.memory.node import ALONE, Node
from hvd_train.data.memory.once import once
from hvd_train.data.records.fields import Fields
from hvd_train.data.records.json_lines import dataset, open_texts, prepared
from hvd_train.data.records.paths import find_files
from hvd_train.data.records.sample_format import encoder


def create(
    node: Node = ALONE,
    fitted: Fitted | None = None,
    fold: FoldSection | None = None,
    *,
    path: Annotated[str | list[str], "files, as names or patterns such as data-*.jsonl.gz"],
    inputs: Annotated[
        str | Annotated[list[str], Field(min_length=1)] | Annotated[dict[str, str], Field(min_length=1)],
        "key of the input, where a.b is the key b in the object a; a list: one positional argument of the model for each key; "
        "a table: names of arguments of the model and their keys",
    ],
    target: Annotated[
        str | None,
        "key of the target; none: the model predicts each token of a text from the tokens before it, or computes its own loss",
    ] = None,
    task: RecordTask = "auto",
    tokenizer: Tokenizer = None,
    dtype: Annotated[
        Literal["auto", "float32"], "numbers of inputs; auto: int64 where all of a key are integers"
    ] = "auto",
    length: TextLength = 512,
    test_path: Annotated[
        str | list[str] | dict[str, str] | None,
        "files of held-out samples; a table: names of held-out sets and their files, the first is the main one",
    ] = None,
    test_fraction: HeldOutFraction = 0.2,
    seed: HeldOutSeed = 0,
) -> Dataset:
    """Return samples with numbers and lists of numbers as tensors, and texts as tokens or as they are.

    Classes that are texts are numbered in sorted order. Raise UserError for files that are missing
    and for targets of several kinds. Lines that are no JSON or have no such keys are damaged samples.
    """
    held_out = test_path if isinstance(test_path, dict) else {"test": test_path} if test_path else {}
    files = [find_files(path, "path"), *(find_files(one, "test_path") for one in held_out.values())]
    groups, fields = [open_texts(node, group) for group in files], Fields(inputs, target)
    hold_out = None if held_out else HoldOut(test_fraction, seed, fold)
    arrays, facts = once(node, partial(prepared, groups, fields, task, dtype == "float32", hold_out, fitted))
    encode = partial(encoder, tokenizer, length, fitted=fitted)
    return dataset(groups, fields, arrays, facts, [*held_out], encode)
